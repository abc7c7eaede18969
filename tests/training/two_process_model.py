"""What each of two processes does in test_two_processes.py: the loss of its half of a batch."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tiny_models import CLASS_NAMES, TEXTS, scatter_weights, task_batches, tiny_config
from transformers_upv2.data.world_tokenizer import train_tokenizer
from transformers_upv2.model.distributed import leave_together
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask

TASKS = ("retrieval", "captioning", "language_modeling")


def own_share(value: Any, rank: int, world_size: int) -> Any:
    """Return this process's rows of a tensor."""
    return value.chunk(world_size)[rank]


def losses_and_gradients(rank: int = 0, world_size: int = 1) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    """The loss of every task and its gradient, averaged over processes as DDP does."""
    tokenizer = train_tokenizer(TEXTS + CLASS_NAMES, vocabulary_size=320, max_length=32)
    torch.manual_seed(0)
    config = tiny_config(text_config={"vocab_size": len(tokenizer)}, vocabulary_sample_size=50)  # without dropout
    model = scatter_weights(UniPerceiverV2ForMultiTask(config)).train()
    batches = task_batches(tokenizer, number=4)
    results = {}
    for task in TASKS:
        batch = {name: own_share(value, rank, world_size) for name, value in batches[task].items()}
        model.zero_grad()
        loss = model(task=task, step_seed=7, **batch).loss
        loss.backward()
        gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        mean = {"": loss.detach().clone()} | gradient
        if world_size > 1:
            for value in mean.values():
                dist.all_reduce(value)
                value /= world_size
        results[task] = (mean.pop(""), mean)
    return results


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(losses_and_gradients(rank, 2), Path(folder) / f"{rank}.pt")
    leave_together()
