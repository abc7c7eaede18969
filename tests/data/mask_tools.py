"""Independent measurements of masks."""

import numpy as np


def mask_box(mask: np.ndarray) -> list[float]:
    """Return the tight box [left, top, width, height] of a mask that is not empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    left, top = float(columns[0]), float(rows[0])
    return [left, top, float(columns[-1]) + 1 - left, float(rows[-1]) + 1 - top]
