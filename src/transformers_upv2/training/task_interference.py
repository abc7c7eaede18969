"""How much the gradient of one task helps or hurts another.

A gradient step of length ε on task j changes the loss of task i by about -ε ‖g_i‖ cos(g_i, g_j). So
a positive cosine says that training j helps i, a negative one that it hurts i, and 0 that they do
not touch each other (in first order, at these weights, on these batches). Cosines, not products,
since ``TaskBalancedAdamW`` gives the gradients of all tasks the same length.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transformers_upv2.training.model_arguments import extra_arguments


@dataclass(frozen=True)
class TaskInterference:
    """What the gradients of several tasks do to each other.

    Args:
        tasks: The tasks, in the order of rows and columns.
        cosines: Cosines between the gradients over all trainable parameters, ``(tasks, tasks)``;
            symmetric. A task whose gradient is zero has the cosine 0 with every task.
        norms: Lengths of the gradients, ``(tasks,)``.
    """

    tasks: tuple[str, ...]
    cosines: Tensor
    norms: Tensor

    def between(self, task: str, other: str) -> float:
        """Return the cosine of two tasks."""
        return self.cosines[self.tasks.index(task), self.tasks.index(other)].item()

    def __str__(self) -> str:
        width = max(8, *(len(task) for task in self.tasks))
        lines = [" " * width + "".join(f" {task:>{width}}" for task in self.tasks)]
        for task, row in zip(self.tasks, self.cosines.tolist(), strict=True):
            lines.append(f"{task:>{width}}" + "".join(f" {cosine:>+{width}.3f}" for cosine in row))
        return "\n".join(lines)


def task_interference(
    model: nn.Module, batches: Mapping[str, Mapping[str, Any]], step_seed: int = 0
) -> TaskInterference:
    """Compare the gradients of several tasks at the model's present weights.

    A gradient of one batch is noisy: the larger the batches, the closer the cosines are to those of
    the tasks. One copy of the trainable parameters is held for every task. The weights and their
    ``grad`` are left as they were; the mode (train or eval) is the caller's.

    Args:
        model: Any model whose outputs hold a ``loss``, called as ``MultiTaskTrainer`` calls it.
        batches: A batch of every task, on the device of the model.
        step_seed: For all tasks the same, so that they see the same noise; also seeds torch's
            global generator, which is put back afterwards.

    Returns:
        The matrix of cosines, printable.

    Raises:
        ValueError: If there is no batch, or a loss depends on no trainable parameter, or a gradient
            is not finite.
    """
    if not batches:
        raise ValueError("`batches` must hold a batch of every task to compare, got none.")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [_gradient(model, parameters, task, batch, step_seed) for task, batch in batches.items()]
    products = torch.stack([torch.stack([_dot(one, other) for other in gradients]) for one in gradients])
    norms = products.diagonal().sqrt()  # (tasks,)
    for task, norm in zip(batches, norms.tolist(), strict=True):
        if not torch.tensor(norm).isfinite():
            raise ValueError(f"The gradient of every task must be finite, got {norm} for {task!r}. Look at its batch.")
    scale = torch.where(norms > 0, 1 / norms, 0.0)
    return TaskInterference(tuple(batches), products * torch.outer(scale, scale), norms)


def _gradient(
    model: nn.Module, parameters: list[nn.Parameter], task: str, batch: Mapping[str, Any], step_seed: int
) -> list[Tensor | None]:
    extra = {"task": task, "step_seed": step_seed}
    known = extra_arguments(model)
    with torch.random.fork_rng(devices=_cuda_devices(parameters)), torch.enable_grad():
        torch.manual_seed(step_seed)
        loss = model(**batch, **{name: value for name, value in extra.items() if name in known})["loss"]
        if not loss.requires_grad:
            raise ValueError(
                f"The loss of task {task!r} must depend on a trainable parameter, but it depends on none."
            )
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))


def _dot(one: list[Tensor | None], other: list[Tensor | None]) -> Tensor:
    """Return the product of two gradients in float64, a missing part counting as zero."""
    parts = [torch.sum(a.double() * b.double()) for a, b in _both(one, other)]
    return torch.stack([part.cpu() for part in parts]).sum() if parts else torch.zeros((), dtype=torch.float64)


def _both(one: list[Tensor | None], other: list[Tensor | None]) -> Iterator[tuple[Tensor, Tensor]]:
    for a, b in zip(one, other, strict=True):
        if a is not None and b is not None:
            yield a, b


def _cuda_devices(parameters: list[nn.Parameter]) -> list[torch.device]:
    return list({parameter.device for parameter in parameters if parameter.is_cuda})
