"""``python -m transformers_upv2.recipes`` does what ``scripts/train.py`` does."""

from transformers_upv2.recipes.run import run_script

if __name__ == "__main__":
    run_script()
