"""Metrics, one file each, and the record in which a figure and its protocol travel together."""
