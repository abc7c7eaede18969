"""Train a stock transformers model on several tasks with MultiTaskTrainer: nothing here is Uni-Perceiver.

    python scripts/train_stock_model.py --output runs/stock

A small T5 learns to copy, reverse and sort digits. Every update trains one task; the task that is
hardest is sampled most often, and no task is louder than another, though one's loss is multiplied
by 1000. Takes about a minute on one core and prints how many answers are right and how
much the tasks help each other.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import T5Config, T5ForConditionalGeneration

from transformers_upv2 import MultiTaskTrainer, MultiTaskTrainingArguments
from transformers_upv2.training.task_interference import task_interference

LENGTH = 5
PAD, END, FIRST_DIGIT, FIRST_TASK = 0, 1, 2, 12
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "copy": lambda digits: digits,
    "reverse": lambda digits: digits.flip(0),
    "sort": lambda digits: digits.sort().values,
}


class DigitTask(Dataset):
    """Rows of digits, behind a token that names the task, and the rows that the task asks for."""

    def __init__(self, task: str, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.digits = torch.randint(10, (size, LENGTH), generator=generator)
        self.rule = RULES[task]
        self.prefix = torch.tensor([FIRST_TASK + list(RULES).index(task)])

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        digits = self.digits[index]
        end = torch.tensor([END])
        return {
            "input_ids": torch.cat([self.prefix, digits + FIRST_DIGIT, end]),
            "labels": torch.cat([self.rule(digits) + FIRST_DIGIT, end]),
        }


def make_model() -> T5ForConditionalGeneration:
    """Return a small T5 with random weights."""
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(vocab_size=16, dropout_rate=0.0, decoder_start_token_id=PAD, **sizes))


def share_right(model: T5ForConditionalGeneration, dataset: DigitTask) -> float:
    """Return how many rows are answered without a mistake."""
    rows = [dataset[index] for index in range(len(dataset))]
    inputs, labels = (torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels"))
    answers = model.eval().generate(input_ids=inputs, max_new_tokens=LENGTH + 1, do_sample=False)[:, 1:]
    if answers.shape != labels.shape:
        return 0.0
    return (answers == labels).all(dim=1).float().mean().item()


def train(output: Path, steps: int) -> tuple[MultiTaskTrainer, dict[str, float]]:
    """Train, and return the trainer and the share of right answers of every task."""
    args = MultiTaskTrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        learning_rate=2e-3,
        adam_beta2=0.99,
        per_device_train_batch_size=32,
        sampling_probabilities={"copy": 0.2, "reverse": 0.3, "sort": 0.5},
        loss_weights={"copy": 1000.0},
        logging_steps=max(1, steps // 10),
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    datasets = {task: DigitTask(task, 20_000, seed=1) for task in RULES}
    trainer = MultiTaskTrainer(make_model(), args, datasets)
    trainer.train()
    return trainer, {task: share_right(trainer.model, DigitTask(task, 200, seed=2)) for task in RULES}


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/stock"))
    parser.add_argument("--steps", type=int, default=1500)
    arguments = parser.parse_args()
    trainer, right = train(arguments.output, arguments.steps)
    for task, share in right.items():
        print(f"{task}: {share:.0%} of 200 unseen rows right")
    batches = {task: torch.utils.data.default_collate([*DigitTask(task, 256, seed=3)]) for task in RULES}
    print(f"cosines between the gradients of the tasks:\n{task_interference(trainer.model, batches)}")


if __name__ == "__main__":
    main()
