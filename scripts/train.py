"""Train by a recipe.

    accelerate launch scripts/train.py --config resnet50_ablation --data DATA --out runs/r50 --dry-run
    accelerate launch scripts/train.py --config resnet50_ablation --data DATA --out runs/r50

The recipes lie in ``scripts/recipes``, which is the package's own folder of them. ``docs/guide_own_images.md`` shows a
whole way from own images to a published model.
"""

from transformers_upv2.recipes.run import run_script

if __name__ == "__main__":
    run_script()
