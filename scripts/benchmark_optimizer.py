"""Time a step of TaskBalancedAdamW against torch's foreach AdamW with clip_grad_norm_, and count its state.

    python scripts/benchmark_optimizer.py

Both work on the same parameters and gradients, turn by turn, so whatever else the machine does hits
both. The parameters have the shapes of a text encoder. Takes about 6 bytes of memory per byte of
parameters, and half a minute on one core.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from transformers_upv2.training.optimizer import TaskBalancedAdamW

WIDTH = 768
TARGET = 1.15


def make_parameters(millions: float, device: str) -> list[nn.Parameter]:
    """Return an embedding and as many Transformer layers as fit, with gradients."""
    shapes: list[tuple[int, ...]] = [(30_000, WIDTH)]
    layer = [(WIDTH, WIDTH), (WIDTH,)] * 4 + [(4 * WIDTH, WIDTH), (4 * WIDTH,), (WIDTH, 4 * WIDTH)] + [(WIDTH,)] * 5
    size = shapes[0][0] * WIDTH
    layer_size = sum(torch.Size(shape).numel() for shape in layer)
    for _ in range(max(1, round((millions * 1e6 - size) / layer_size))):
        shapes += layer
    generator = torch.Generator(device).manual_seed(0)
    parameters = [nn.Parameter(torch.randn(s, generator=generator, device=device) * 0.02) for s in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator, device=device) * 1e-3
    return parameters


def seconds(step: Callable[[], None], device: str) -> float:
    """Return how long a step takes."""
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the memory of an optimizer's state."""
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=100.0, help="parameters")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each optimizer")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    parameters = make_parameters(arguments.millions, arguments.device)
    ours = TaskBalancedAdamW(parameters, lr=1e-4, sampling_probabilities={"a": 0.5, "b": 0.5})
    theirs = torch.optim.AdamW(parameters, lr=1e-4, foreach=True)

    def our_step() -> None:
        ours.begin_step("a")
        ours.step()

    def their_step() -> None:
        nn.utils.clip_grad_norm_(parameters, 1e6, foreach=True)  # a limit that leaves the gradients alone
        theirs.step()

    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(arguments.steps + 1):
        for name, step in (("ours", our_step), ("theirs", their_step)):
            duration = seconds(step, arguments.device)
            if number:  # the first step makes the state
                times[name].append(duration)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["ours"] / medians["theirs"]
    number = sum(parameter.numel() for parameter in parameters) / 1e6
    print(
        f"{number:.1f}M parameters on {arguments.device}, {torch.get_num_threads()} threads, {arguments.steps} steps"
    )
    print(f"step: TaskBalancedAdamW {medians['ours']:.3f} s, AdamW + clip_grad_norm_ {medians['theirs']:.3f} s")
    print(f"ratio {ratio:.2f} (target: at most {TARGET})")
    print(f"state: {state_bytes(ours) / 2**20:.1f} MiB, AdamW {state_bytes(theirs) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
