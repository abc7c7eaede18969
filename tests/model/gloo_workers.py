"""What each of two processes does in test_distributed.py; the test compares it with one process."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from transformers_upv2.model.distributed import gather_with_gradient, leave_together, rank, world_size
from transformers_upv2.model.likelihood_losses import (
    encode_sharded,
    pair_loss,
    region_focal_loss,
    region_softmax_loss,
    vocabulary_loss,
)
from transformers_upv2.model.task_forward import _candidates_of_step

NUM_CANDIDATES = 7  # odd: the last share is padded
ANSWERS = torch.tensor([30, 12, 10, 30, 44, 60])  # three on each of two processes
REGIONS = torch.tensor([[2, -1, 0, -1], [1, 1, -1, 0], [-1, -1, -1, -1], [-1, 3, -1, -1]])


def own_share(values: Tensor) -> Tensor:
    """This process's part of a global batch."""
    return values.chunk(world_size())[rank()]


def pairs(weight: Tensor) -> Tensor:
    images, texts = torch.randn(6, 5), torch.randn(6, 5)
    embeddings = (F.normalize(own_share(values) @ weight, dim=1) for values in (images, texts))
    return pair_loss(*embeddings, weight.norm(), label_smoothing=0.1)


def vocabulary(weight: Tensor) -> Tensor:
    table, asked = torch.randn(64, 5), torch.randn(6, 8)
    ids = torch.tensor([10, 12, 30, 31, 44, 60, 63])
    candidates = encode_sharded(ids, lambda own: F.normalize(table[own] @ weight, dim=1))
    logits = own_share(asked) @ candidates.T
    # the mean over the answers of all processes, though the last has fewer of them
    number = len(own_share(ANSWERS)) - (1 if rank() == world_size() - 1 else 0)
    return vocabulary_loss(logits[:number], ids, own_share(ANSWERS)[:number])


def regions_focal(weight: Tensor) -> Tensor:
    return region_focal_loss(own_share(torch.randn(4, 4, 5)) @ weight, own_share(REGIONS))


def regions_softmax(weight: Tensor) -> Tensor:
    return region_softmax_loss(own_share(torch.randn(4, 4, 5)) @ weight, own_share(REGIONS))


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function for function in (pairs, vocabulary, regions_focal, regions_softmax)
}


def run_losses() -> dict[str, tuple[Tensor, Tensor]]:
    """Every loss and its gradient, averaged over processes as data-parallel training does."""
    results = {}
    for name, function in LOSSES.items():
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(5, 8))
        loss = function(weight)
        loss.backward()
        mean = [loss.detach().clone(), weight.grad.clone()]
        if world_size() > 1:
            for value in mean:
                dist.all_reduce(value)
                value /= world_size()
        results[name] = (mean[0], mean[1])
    return results


def sampled_candidates(step_seed: int | None) -> tuple[Tensor, Tensor]:
    """Candidates of a step whose answers differ by process."""
    model: Any = SimpleNamespace(
        config=SimpleNamespace(vocab_size=64, vocabulary_sample_size=8), vocabulary_ids=lambda: torch.arange(4, 64)
    )
    torch.manual_seed(100 + rank())  # the processes' own generators differ
    return _candidates_of_step(model, own_share(ANSWERS), step_seed)


def own_pairs(process: int) -> tuple[Tensor, Tensor]:
    """Loss and gradient of one process's pairs alone."""
    texts = torch.randn(8, 6, generator=torch.Generator().manual_seed(3)).chunk(2)[process]
    images = texts.roll(1, dims=0).requires_grad_()
    loss = pair_loss(images, texts, torch.tensor(2.0), 0.1, gather=False)
    loss.backward()
    return loss.detach(), images.grad


def work(process: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=process, world_size=2)
    features = torch.full((2, 3), float(process + 1), requires_grad=True)
    gathered = gather_with_gradient(features)
    (gathered * torch.arange(12.0).view(4, 3) * (process + 1)).sum().backward()
    result = {
        "losses": run_losses(),
        "gathered": (gathered.detach(), features.grad),
        "own_pairs": own_pairs(rank()),
        "candidates": {seed: sampled_candidates(seed) for seed in (None, 5)},
    }
    torch.save(result, Path(folder) / f"{process}.pt")
    leave_together()
