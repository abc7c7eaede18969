"""Training recipes: YAML files that name model, data, augmentation, evaluation and arguments, and what runs them.

``accelerate launch scripts/train.py --config NAME``, or without a checkout ``accelerate launch -m
transformers_upv2.recipes --config NAME``.
"""

from importlib import resources
from pathlib import Path

FOLDER = Path(str(resources.files("transformers_upv2") / "recipes"))
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
"""The recipes that come with the package."""
