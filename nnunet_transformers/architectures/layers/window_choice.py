"""Attention windows that tile a token grid exactly."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import inf, log, prod

# tokens in a window: at most about the published 7^3 and preferably 6^3, since attention's cost grows with them; in 2D
# preferably 8^2, near Swin's 7^2, with which a network learns faster at equal cost than with 16^2 (benchmarks/NOTES.md)
MAX_WINDOW_TOKENS = {2: 256, 3: 350}
GOOD_WINDOW_TOKENS = {2: 8**2, 3: 6**3}


@lru_cache(maxsize=4096)
def choose_window(grid_size: tuple[int, ...], token_spacing: tuple[float, ...]) -> tuple[float, tuple[int, ...]]:
    """Choose a window that divides the grid, holds about ``GOOD_WINDOW_TOKENS`` and is near a cube in mm.

    Args:
        grid_size: tokens per axis, two or three of them.
        token_spacing: mm per token and axis.

    Returns:
        its penalty (0 is ideal) and the window, tokens per axis.
    """
    best = (inf, grid_size)
    limit = MAX_WINDOW_TOKENS[len(grid_size)]
    divisors = [[d for d in range(1, min(g, limit) + 1) if g % d == 0] for g in grid_size]
    for window in product(*divisors):
        tokens = prod(window)
        if tokens > limit:
            continue
        if window == grid_size:
            return 0.0, window
        # deviation from a cube in mm; an axis that the window spans entirely may be short
        edges = [log(w * s) for w, s in zip(window, token_spacing, strict=True)]
        mean = sum(edges) / len(edges)
        shape = sum(
            max(0.0, e - mean) if w == g else abs(e - mean) for e, w, g in zip(edges, window, grid_size, strict=True)
        )
        best = min(best, (abs(log(tokens / GOOD_WINDOW_TOKENS[len(window)])) + shape, window))
    return best


def choose_windows(grid_sizes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Choose the best window of each grid, for tokens of the same length on every axis."""
    return tuple(choose_window(grid_size, (1.0,) * len(grid_size))[1] for grid_size in grid_sizes)
