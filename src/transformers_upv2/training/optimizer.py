"""TaskBalancedAdamW: AdamW for unmixed batches, with task-balanced gradient normalization (TBGN).

Reference: Uni-Perceiver v2, section 4.4 (https://arxiv.org/abs/2211.09808). An update whose batch
holds task k, sampled with probability s_k and weighted by ω_k, is

    g <- ω_k g / ‖g‖
    m <- beta1 m + (1 - beta1) g / s_k
    n <- beta2 n + (1 - beta2) g² / s_k
    θ <- θ - lr m̂ / (√n̂ + eps)

with torch's meaning of the betas; the paper's weigh the new gradient instead. The second moment
takes g² / s_k, so the division by s_k cannot be moved into the gradient.
Not stated in the paper, chosen here: decoupled weight decay and bias correction as in AdamW, ‖g‖
over all trainable parameters, and every parameter takes part in every update. A parameter that the
batch did not use has the gradient zero, for without that a rare task would move its own parameters
√s_k times slower.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

ELEMENTS_PER_CHUNK = {"cpu": 2**16}  # they stay in the cache between operations
DEFAULT_ELEMENTS_PER_CHUNK = 2**26  # bounds the temporary memory
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
UNDECAYED_ENDINGS = ("bias", "bias_table", "embed", "embedding", "embeddings", "token", "tokens", "query", "queries")
"""Of names of parameters that are vectors to be added or asked with, however many of them lie in one matrix."""
SQUARABLE = 1e15
"""Larger numbers than this, and smaller ones than its inverse, are not squared in float32, nor are their inverses."""


class TaskBalancedAdamW(torch.optim.Optimizer):
    """AdamW in which every task pulls with the strength it was given, however loud its loss is.

    The task of the next :meth:`step` is ``param_groups[i]["task"]``, set by :meth:`begin_step` and
    forgotten by the step, whether that is made or skipped. ``param_groups[0]["task_statistics"]``
    keeps for each task the steps made, the steps skipped, and the last and the summed raw gradient
    norm. A step is skipped if its gradient is not finite, or shorter than the smallest normal number
    of float32, yet not zero.

    Args:
        params: Parameters or parameter groups, see :func:`parameter_groups`.
        lr: Learning rate.
        betas: How much of the two moments is kept in a step.
        eps: Added to the root of the second moment. Normalized gradients are small, about one
            over the root of the number of parameters, so it has to be much smaller than that.
        weight_decay: Decoupled weight decay.
        sampling_probabilities: s_k, how often each task is sampled, in (0, 1].
        task_weights: ω_k, the length that a task's gradient is given; 1 where absent.
        min_norm: Gradients shorter than this are divided by ``min_norm`` in place of their norm.
        normalize: False leaves the gradient's length alone (``task_weights`` still multiply it).
            With one task of probability 1 this is ``torch.optim.AdamW``.

    Raises:
        ValueError: If a number is out of its range or ``task_weights`` names an unknown task.

    Warns:
        UserWarning: If the second moment forgets faster than the rarest task comes back.
    """

    _step_supports_amp_scaling = True  # GradScaler then leaves scale and skipping to step()

    def __init__(  # noqa: PLR0913  # as many as the method has
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        sampling_probabilities: Mapping[str, float],
        task_weights: Mapping[str, float] | None = None,
        min_norm: float = 0.0,
        normalize: bool = True,
    ) -> None:
        _check_hyperparameters(lr, betas, eps, weight_decay, min_norm)
        self.sampling_probabilities = dict(sampling_probabilities)
        self.task_weights = dict.fromkeys(self.sampling_probabilities, 1.0) | dict(task_weights or {})
        _check_tasks(self.sampling_probabilities, self.task_weights)
        self.min_norm = min_norm
        self.normalize = normalize
        _warn_of_short_memory(betas[1], min(self.sampling_probabilities.values()))
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "step": 0,
            "task": None,
        }
        super().__init__(params, defaults)
        self.param_groups[0]["task_statistics"] = {task: _no_steps() for task in self.sampling_probabilities}

    def __getstate__(self) -> dict[str, Any]:
        names = ("sampling_probabilities", "task_weights", "min_norm", "normalize")
        return super().__getstate__() | {name: getattr(self, name) for name in names}

    def begin_step(self, task: str) -> None:
        """Name the task whose gradient the next step applies.

        Raises:
            ValueError: If the optimizer does not know the task.
        """
        self._require_known(task)
        for group in self.param_groups:
            group["task"] = task

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch has one overload with and one without closure
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Apply the gradient of one task to all parameters.

        Args:
            closure: Computes the loss and its gradient again.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: If no task was set, or not the same one in all groups.
            ValueError: If the optimizer does not know the task.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._is_asked_for_state():
            self._moments([p for group in self.param_groups for p in group["params"] if p.requires_grad])
            return loss
        task = self._take_task()
        norm, gradient_scale = self._raw_norm()
        # a state that was loaded need not know every task
        statistics = self.param_groups[0]["task_statistics"].setdefault(task, _no_steps())
        if not math.isfinite(norm) or self._is_too_short(norm, gradient_scale):
            statistics["skipped_steps"] += 1
            return loss
        statistics["steps"] += 1
        statistics["last_norm"] = norm
        statistics["norm_sum"] += norm

        factor = self.task_weights[task] / gradient_scale
        if self.normalize:
            factor = factor / max(norm, self.min_norm) if norm > 0 else 0.0
        for group in self.param_groups:
            group["step"] += 1
            for chunk in _chunks(group["params"]):
                self._update(chunk, group, factor, self.sampling_probabilities[task])
        return loss

    def _is_too_short(self, norm: float, gradient_scale: float) -> bool:
        """Tell whether a gradient has too few digits left in float32 to be made longer."""
        return self.normalize and 0 < max(norm, self.min_norm) * gradient_scale < SMALLEST_NORMAL

    def _is_asked_for_state(self) -> bool:
        """Tell whether this step is that of ``torch.distributed.checkpoint``.

        It makes the state of a new optimizer, which it then fills, by a step with learning rate 0.
        """
        return not self.state and all(group["task"] is None and group["lr"] == 0 for group in self.param_groups)

    def _take_task(self) -> str:
        """Read the task of this step and forget it."""
        tasks = [group["task"] for group in self.param_groups]
        for group in self.param_groups:
            group["task"] = None
        if tasks[0] is None or any(task != tasks[0] for task in tasks):
            raise RuntimeError(
                "All parameter groups must have the same `task` before `step`, got "
                f"{list(dict.fromkeys(tasks))}. Call `begin_step(task)` before every step."
            )
        self._require_known(tasks[0])
        return tasks[0]

    def _require_known(self, task: str) -> None:
        if task not in self.sampling_probabilities:
            raise ValueError(
                f"`task` must be one of {sorted(self.sampling_probabilities)}, got {task!r}. "
                "Name it in `sampling_probabilities`."
            )

    def _raw_norm(self) -> tuple[float, float]:
        """Return the norm of the whole gradient, and by what a GradScaler has multiplied it."""
        gradients = [
            parameter.grad
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.requires_grad and parameter.grad is not None
        ]
        norm = total_norm(gradients)
        grad_scale = getattr(self, "grad_scale", None)
        scale = 1.0 if grad_scale is None else grad_scale.item()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item() > 0:
            norm = math.inf
        return norm / scale, scale

    def _update(self, params: list[Tensor], group: dict[str, Any], factor: float, probability: float) -> None:
        """Update some parameters of a group by their gradients times ``factor``."""
        beta1, beta2 = group["betas"]
        correction1 = 1 - beta1 ** group["step"]
        correction2 = math.sqrt(1 - beta2 ** group["step"])
        first, second = self._moments(params)
        torch._foreach_mul_(first, beta1)
        torch._foreach_mul_(second, beta2)
        used = [number for number, p in enumerate(params) if p.grad is not None]
        gradients = [p.grad for p in params if p.grad is not None]
        if used and factor and not 1 / SQUARABLE < factor < SQUARABLE:
            scale = 2.0 ** max(-126, min(math.frexp(factor)[1], 126))
            gradients, factor = list(torch._foreach_mul(gradients, scale)), factor / scale
        if factor and used:
            torch._foreach_add_(
                [first[number] for number in used], gradients, alpha=(1 - beta1) * factor / probability
            )
            torch._foreach_addcmul_(
                [second[number] for number in used],
                gradients,
                gradients,
                value=(1 - beta2) * factor**2 / probability,
            )
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        # m̂ / (√n̂ + eps) with both bias corrections moved into two numbers
        denominators = torch._foreach_sqrt(second)
        torch._foreach_add_(denominators, group["eps"] * correction2)
        torch._foreach_addcdiv_(params, first, denominators, value=-group["lr"] * correction2 / correction1)

    def _moments(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for parameter in params:
            if not self.state[parameter]:
                self.state[parameter] = {
                    name: torch.zeros_like(parameter, memory_format=torch.preserve_format)
                    for name in ("exp_avg", "exp_avg_sq")
                }
        states = [self.state[parameter] for parameter in params]
        return [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]


def total_norm(gradients: list[Tensor]) -> float:
    """Return the L2 norm of all gradients as one vector, over all shards and in fp32 at least."""
    gradients = [g.float() if g.dtype in (torch.float16, torch.bfloat16) else g for g in gradients]
    norm = _norm(gradients)
    if 1 / SQUARABLE < norm < SQUARABLE:
        return norm
    largest = _norm(gradients, math.inf)
    if not SMALLEST_NORMAL <= largest < math.inf:
        return largest
    scale = 2.0 ** -min(math.frexp(largest)[1], 126)
    return math.hypot(*(_norm([gradient * scale]) for gradient in gradients)) / scale


def _norm(gradients: list[Tensor], order: float = 2.0) -> float:
    norm = torch.nn.utils.get_total_norm(gradients, order)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


def _no_steps() -> dict[str, float]:
    """Return the statistics of a task before its first step."""
    return {"steps": 0, "skipped_steps": 0, "last_norm": 0.0, "norm_sum": 0.0}


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    lr_multipliers: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Put every trainable parameter of a model into exactly one group.

    Not stated in the paper, chosen here: no decay on vectors and scalars (biases, temperatures),
    nor on normalization layers, embeddings, learned tokens and queries, tables of relative positions
    and gates, nor on what a module's own ``no_weight_decay()`` names, as timm's models do.

    Args:
        model: The model.
        lr: Learning rate.
        weight_decay: Weight decay where there is one.
        lr_multipliers: Prefixes of parameter names, and by what they multiply ``lr``. The longest
            prefix that fits a name counts.

    Returns:
        Parameter groups with ``params``, ``lr`` and ``weight_decay``.

    Raises:
        ValueError: If a prefix fits no trainable parameter or a multiplier is negative.
        RuntimeError: If the groups do not partition the trainable parameters.
    """
    multipliers = {"": 1.0, **(lr_multipliers or {})}
    if min(multipliers.values()) < 0:
        raise ValueError(f"`lr_multipliers` must not be negative, got {multipliers}.")
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for prefix in multipliers:
        if prefix and not any(name.startswith(prefix) for name in trainable):
            raise ValueError(
                "Every prefix in `lr_multipliers` must begin the name of a trainable parameter, but "
                f"{prefix!r} begins none. Look at `model.named_parameters()`."
            )
    undecayed = _names_without_decay(model)
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in trainable.items():
        prefix = max((p for p in multipliers if name.startswith(p)), key=len)
        decay = 0.0 if name in undecayed else weight_decay
        groups.setdefault((lr * multipliers[prefix], decay), []).append(parameter)
    grouped = [id(parameter) for params in groups.values() for parameter in params]
    if sorted(grouped) != sorted({id(p) for p in model.parameters() if p.requires_grad}):
        raise RuntimeError("The parameter groups must hold every trainable parameter exactly once.")
    return [{"params": params, "lr": group_lr, "weight_decay": decay} for (group_lr, decay), params in groups.items()]


def _names_without_decay(model: nn.Module) -> set[str]:
    names: set[str] = set()
    for module_name, module in model.named_modules():
        prefix = f"{module_name}." if module_name else ""
        names |= {f"{prefix}{name}" for name in getattr(module, "no_weight_decay", set)()}
        is_exempt = isinstance(module, nn.Embedding) or "Norm" in type(module).__name__
        for own_name, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}{own_name}"
            parts = name.split(".")
            if (
                is_exempt
                or parameter.ndim < 2
                or "logit_scale" in name
                or own_name.endswith(UNDECAYED_ENDINGS)
                or any(part == "gate" or part.endswith("_gate") for part in parts)
            ):
                names.add(name)
    return names


def _chunks(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Cut the trainable ones of a list of parameters into pieces of bounded size."""
    chunk: list[Tensor] = []
    size = 0
    for parameter in params:
        if not parameter.requires_grad:
            continue
        limit = ELEMENTS_PER_CHUNK.get(parameter.device.type, DEFAULT_ELEMENTS_PER_CHUNK)
        if chunk and size + parameter.numel() > limit:
            yield chunk
            chunk, size = [], 0
        chunk.append(parameter)
        size += parameter.numel()
    if chunk:
        yield chunk


def _check_hyperparameters(
    lr: float, betas: tuple[float, float], eps: float, weight_decay: float, min_norm: float
) -> None:
    numbers = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "min_norm": min_norm}
    for name, number in numbers.items():
        if not number >= 0:
            raise ValueError(f"`{name}` must not be negative, got {number}.")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"`betas` must lie in [0, 1), got {tuple(betas)}.")


def _check_tasks(sampling_probabilities: dict[str, float], task_weights: dict[str, float]) -> None:
    if not sampling_probabilities:
        raise ValueError("`sampling_probabilities` must name at least one task, got none.")
    for task, probability in sampling_probabilities.items():
        if not 0 < probability <= 1:
            raise ValueError(f"`sampling_probabilities` must lie in (0, 1], got {probability} for task {task!r}.")
    unknown = sorted(set(task_weights) - set(sampling_probabilities))
    if unknown:
        raise ValueError(
            f"`task_weights` must name tasks of `sampling_probabilities`, which are "
            f"{sorted(sampling_probabilities)}, got {unknown}."
        )
    for task, weight in task_weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"`task_weights` must be finite and not negative, got {weight} for task {task!r}.")


def _warn_of_short_memory(beta2: float, rarest: float) -> None:
    window, period = 1 / (1 - beta2), 1 / rarest
    if window < period * (1 - 1e-9):
        warnings.warn(
            f"The second moment remembers {window:.0f} steps (beta2 = {beta2}), but the rarest "
            f"task comes every {period:.0f} steps, so its updates will be uneven. Raise beta2 or "
            "sample the task more often.",
            stacklevel=3,
        )
