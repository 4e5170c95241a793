"""Metrics, one file each; the name fixes the protocol."""
