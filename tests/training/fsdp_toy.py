"""Two processes: TaskBalancedAdamW on a sharded model, beside a whole one, and resumed from a checkpoint."""

import os
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from transformers_upv2.training.optimizer import TaskBalancedAdamW
from transformers_upv2.training.parameter_groups import parameter_groups


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def make_sharded_model() -> nn.Module:
    model = make_model()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model


def make_optimizer(model: nn.Module) -> TaskBalancedAdamW:
    return TaskBalancedAdamW(parameter_groups(model, 0.1, 0.1), lr=0.1, sampling_probabilities={"a": 0.5, "b": 0.5})


def train(model: nn.Module, optimizer: TaskBalancedAdamW, inputs: torch.Tensor, steps: range) -> None:
    for step in steps:
        model(inputs).square().mean().backward()
        optimizer.begin_step("ab"[step % 2])
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    dist.init_process_group("gloo")
    inputs = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))  # a share for each rank
    sharded, whole = make_sharded_model(), make_model()
    optimizers = [make_optimizer(model) for model in (sharded, whole)]
    train(sharded, optimizers[0], inputs[dist.get_rank()], range(4))
    train(whole, optimizers[1], inputs, range(4))
    for part, parameter in zip(sharded.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(part.full_tensor(), parameter, rtol=1e-5, atol=1e-6)
    norms = [optimizer.param_groups[0]["task_statistics"]["b"]["norm_sum"] for optimizer in optimizers]
    torch.testing.assert_close(*norms, rtol=1e-5, atol=1e-6)

    states = dict(zip(("model", "optimizer"), get_state_dict(sharded, optimizers[0]), strict=True))
    dcp.save(states, checkpoint_id=sys.argv[1])
    resumed = make_sharded_model()
    optimizer = make_optimizer(resumed)
    states = dict(zip(("model", "optimizer"), get_state_dict(resumed, optimizer), strict=True))
    dcp.load(states, checkpoint_id=sys.argv[1])
    set_state_dict(resumed, optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"])
    assert optimizer.param_groups[0]["task_statistics"] == optimizers[0].param_groups[0]["task_statistics"]
    for model, its_optimizer in ((sharded, optimizers[0]), (resumed, optimizer)):
        train(model, its_optimizer, inputs[dist.get_rank()], range(4, 8))
    for one, other in zip(sharded.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one.full_tensor(), other.full_tensor())
    check_empty_shards()
    dist.barrier()


def check_empty_shards() -> None:
    """A parameter of one row, of which a rank has nothing: all ranks make or skip the same steps."""
    model = nn.Linear(5, 1)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = make_optimizer(model)
    for task, factor in (("a", 0.0), ("a", float("nan")), ("b", float("inf")), ("b", 1e-30)):
        (model(torch.ones(2, 5)).sum() * factor).backward()
        optimizer.begin_step(task)
        optimizer.step()
        optimizer.zero_grad()
    counts = optimizer.param_groups[0]["task_statistics"]
    assert [(counts[task]["steps"], counts[task]["skipped_steps"]) for task in "ab"] == [(1, 1), (1, 1)]
    assert 0 < counts["b"]["last_norm"] < 1e-28


if __name__ == "__main__":
    main()
    # All has passed. A device mesh outlives its process group, and gloo's threads with it; one that frees a tensor
    # while Python ends aborts the process.
    os._exit(0)
