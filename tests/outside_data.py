"""Data that is not part of the repository: who has it names its folder in a variable, and more tests run."""

import os
from pathlib import Path

COCO = Path(os.environ.get("UPV2_COCO", "no coco"))
"""A folder with ``annotations/*_train2017.json`` and ``images/train2017``, all of COCO or a part."""
NEEDS_COCO = "set UPV2_COCO to a folder with COCO's annotations and images of train2017"
MASKDINO_NAMES = Path(os.environ.get("UPV2_MASKDINO_NAMES", "no names"))
NEEDS_MASKDINO_NAMES = (
    "set UPV2_MASKDINO_NAMES to a folder with the names and shapes in official Mask DINO checkpoints"
)
