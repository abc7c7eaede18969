"""A toy model and toy tasks; run as a script, it trains them on one or more processes."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from datasets import IterableDataset
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset
from transformers import TrainerCallback

from transformers_upv2.training.arguments import MultiTaskTrainingArguments
from transformers_upv2.training.trainer import MultiTaskTrainer

TASKS = ("a", "b", "c")


class ToyDataset(Dataset):
    """Linear regression, with noise from torch's global generator."""

    def __init__(self, task, size=50, noise=0.1):
        generator = torch.Generator().manual_seed(TASKS.index(task))
        self.inputs = torch.randn(size, 4, generator=generator)
        self.targets = self.inputs @ torch.randn(4, generator=generator)
        self.noise = noise

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        inputs = self.inputs[index] + self.noise * torch.randn(4)
        return {"x": inputs, "y": self.targets[index], "index": index}


def read_shards(shards, task):
    data = ToyDataset(task)
    for shard in shards:
        for index in range(shard, len(data), 4):
            yield {"x": data.inputs[index], "y": data.targets[index], "index": index}


def add_noise(example):
    return {"x": example["x"] + 0.1 * torch.randn(4)}


def toy_stream(task):
    """The same examples in four shards."""
    stream = IterableDataset.from_generator(read_shards, gen_kwargs={"shards": [0, 1, 2, 3], "task": task})
    return stream.map(add_noise)


def streamed_datasets():
    """Map-style, streamed, and both by weight."""
    return {
        "a": ToyDataset("a"),
        "b": toy_stream("b"),
        "c": {"whole": (ToyDataset("c", size=20), 1.0), "streamed": (toy_stream("c"), 2.0)},
    }


class ToyModel(nn.Module):
    """A shared trunk, one head a task, dropout; it keeps what it was called with."""

    def __init__(self, dropout=0.1):
        super().__init__()
        generator_state = torch.get_rng_state()
        torch.manual_seed(0)
        self.trunk = nn.Linear(4, 8)
        self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in TASKS})
        torch.set_rng_state(generator_state)
        self.dropout = dropout
        self.calls = []

    def forward(self, task: str, x: Tensor, y: Tensor, index: Tensor, step_seed: int = 0):
        if self.training:
            self.calls.append((task, index.tolist(), step_seed))
        hidden = torch.dropout(self.trunk(x).tanh(), self.dropout, self.training)
        loss = (self.heads[task](hidden)[:, 0] - y).square().mean()
        return {"loss": loss, "loss_terms": {"loss_square": loss.detach()}}


def make_trainer(folder, model=None, datasets=None, callbacks=None, eval_dataset=None, **arguments):
    defaults = {
        "max_steps": 12,
        "save_steps": 4,
        "logging_steps": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "sampling_probabilities": {"a": 0.5, "b": 0.3, "c": 0.2},
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "steps",
    }
    args = MultiTaskTrainingArguments(output_dir=str(folder), **(defaults | arguments))
    return MultiTaskTrainer(
        model or ToyModel(),
        args,
        train_dataset=datasets or {task: ToyDataset(task) for task in TASKS},
        callbacks=callbacks,
        eval_dataset=eval_dataset,
    )


class KillAt(TrainerCallback):
    """Dies without a word after some update."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class KeepGradients(TrainerCallback):
    """Keeps the gradients that each update saw."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append({n: whole(p.grad).clone() for n, p in model.named_parameters() if p.grad is not None})


def same_weights(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def whole(tensor):
    """Return all shards of a tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main():
    options = json.loads(sys.argv[1])
    folder = Path(options["folder"])
    keeper = KeepGradients()
    noise, dropout = (0.0, 0.0) if options.get("exact") else (0.1, 0.1)
    callbacks = [keeper] + ([KillAt(options["kill_at"])] if "kill_at" in options else [])
    trainer = make_trainer(
        folder,
        ToyModel(dropout),
        {task: ToyDataset(task, noise=noise) for task in TASKS},
        callbacks,
        **options.get("arguments", {}),
    )
    trainer.train(resume_from_checkpoint=options.get("resume", False))
    result = {
        "weights": {name: whole(value) for name, value in trainer.model.state_dict().items()},
        "calls": trainer.model.calls,
        "gradients": keeper.gradients,
    }
    torch.save(result, folder / f"result-{trainer.args.process_index}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        os._exit(0)  # gloo's threads, if one frees a tensor while Python ends, abort the process


if __name__ == "__main__":
    main()
