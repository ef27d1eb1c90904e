"""Attention windows that tile a token grid exactly."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import inf, log, prod

# tokens in a window: about the published 7^3 at most, and rather 6^3, as attention's cost grows with them; in 2D fewer
# reach as far
MAX_WINDOW_TOKENS = {2: 256, 3: 350}
GOOD_WINDOW_TOKENS = {2: 14**2, 3: 6**3}


@lru_cache(maxsize=4096)
def choose_window(grid_size: tuple[int, ...], token_spacing: tuple[float, ...]) -> tuple[float, tuple[int, ...]]:
    """The window that divides the grid, holds about ``GOOD_WINDOW_TOKENS`` and is near a cube in mm.

    Returns:
        its penalty (0 is ideal) and the window.
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
        # deviation from a cube in mm; an axis that the window spans entirely is not to blame for being short
        edges = [log(w * s) for w, s in zip(window, token_spacing, strict=True)]
        mean = sum(edges) / len(edges)
        shape = sum(
            max(0.0, e - mean) if w == g else abs(e - mean) for e, w, g in zip(edges, window, grid_size, strict=True)
        )
        best = min(best, (abs(log(tokens / GOOD_WINDOW_TOKENS[len(window)])) + shape, window))
    return best


def tiling_windows(grid_sizes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """The best window of each grid, tokens taken to be as long on every axis."""
    return tuple(choose_window(grid_size, (1.0,) * len(grid_size))[1] for grid_size in grid_sizes)
