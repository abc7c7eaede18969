"""Two processes: the same TaskBalancedAdamW steps on a sharded model and on a whole one."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from transformers_upv2.training.optimizer import TaskBalancedAdamW


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def main() -> None:
    dist.init_process_group("gloo")
    inputs = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))  # a share for each rank
    sharded, whole = make_model(), make_model()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    optimizers = [
        TaskBalancedAdamW(m.parameters(), lr=0.1, sampling_probabilities={"a": 0.5, "b": 0.5})
        for m in (sharded, whole)
    ]
    for step in range(4):
        sharded(inputs[dist.get_rank()]).square().mean().backward()
        whole(inputs).square().mean().backward()
        for optimizer in optimizers:
            optimizer.begin_step("ab"[step % 2])
            optimizer.step()
            optimizer.zero_grad()
    for part, parameter in zip(sharded.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(part.full_tensor(), parameter, rtol=1e-5, atol=1e-6)
    norms = [optimizer.param_groups[0]["task_statistics"]["b"]["norm_sum"] for optimizer in optimizers]
    torch.testing.assert_close(*norms, rtol=1e-5, atol=1e-6)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
