"""As many colours as there are labels, each as far from the others as possible."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from matplotlib.colors import to_hex, to_rgb
from skimage.color import rgb2lab

# Okabe and Ito's, distinct on grey and for colour-blind readers
FEW = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2")
# levels of red, green and blue that further colours are drawn from, and the lightness and least chroma (CIELAB) of
# those that can be seen on a grey image
LEVELS, LIGHTNESS, CHROMA = 18, (30, 92), 25


@lru_cache
def distinct_colours(number: int) -> tuple[str, ...]:
    """Choose colours for labels.

    Up to seven are ``FEW``. To these, one by one, the visible colour is added whose smallest distance in CIELAB to
    those before it is largest (the way of Glasbey et al., https://doi.org/10.1002/col.20327), so that the first colours
    do not depend on the number.

    Returns:
        ``number`` colours as "#rrggbb".
    """
    chosen = list(FEW[:number])
    if number > len(FEW):
        levels = np.linspace(0, 1, LEVELS)
        candidates = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
        lab = rgb2lab(candidates)
        visible = (lab[:, 0] > LIGHTNESS[0]) & (lab[:, 0] < LIGHTNESS[1]) & (np.hypot(lab[:, 1], lab[:, 2]) > CHROMA)
        candidates, lab = candidates[visible], lab[visible]
        first = rgb2lab(np.array([to_rgb(colour) for colour in FEW]))
        nearest = np.linalg.norm(lab[:, None] - first, axis=-1).min(axis=1)
        while len(chosen) < number:
            best = int(nearest.argmax())
            chosen.append(to_hex(candidates[best]))
            nearest = np.minimum(nearest, np.linalg.norm(lab - lab[best], axis=-1))
    return tuple(chosen)
