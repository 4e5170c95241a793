"""Figures of several seeds as cells of a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float] | np.ndarray, *, digits: int = 3) -> str:
    """ "mean ± standard deviation over seeds"; of one seed the deviation is 0.

    >>> spread([1.0, 2.0, 3.0])
    '2 ± 1'
    """
    return f"{np.mean(values):.{digits}g} ± {np.std(values, ddof=min(1, len(values) - 1)):.2g}"
