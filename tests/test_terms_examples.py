"""The examples in the docstrings of the terms run and print what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["likelihood", "divergence", "adversarial", "penalty", "matching", "policy"])
def test_examples(name: str):
    results = doctest.testmod(importlib.import_module(f"twofold.terms.{name}"))
    assert results.attempted > 0 and results.failed == 0
