"""Turn a key such as (seed, task, draw number) into a seed, the same on every machine and rank.

All randomness of a training run is keyed in this way and never taken from the state of a shared
generator, so a run that was killed and resumed draws what it would have drawn.
"""

import hashlib
import random

import numpy as np
import torch


def seed_from(*key: int | str) -> int:
    """Hash a key to a seed in [0, 2^63); different keys give unrelated seeds."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_global_generators(*key: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch by a key.

    For code that knows no other generator: dropout, and the augmentation of foreign data sets.
    """
    seed = seed_from(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # foreign data sets use this generator
    torch.manual_seed(seed)
