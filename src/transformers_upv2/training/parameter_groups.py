"""Which parameters share a learning rate and a weight decay: a partition of all that a model trains."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

UNDECAYED_ENDINGS = ("bias", "bias_table", "embed", "embedding", "embeddings", "token", "tokens", "query", "queries")
"""Of names of parameters that are vectors to be added or asked with, however many of them lie in one matrix."""


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
    names_without_decay = _names_without_decay(model)
    undecayed = {  # by any of their names, since an embedding may be tied to a layer that comes first
        id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in names_without_decay
    }
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in trainable.items():
        prefix = max((p for p in multipliers if name.startswith(p)), key=len)
        decay = 0.0 if id(parameter) in undecayed else weight_decay
        groups.setdefault((lr * multipliers[prefix], decay), []).append(parameter)
    grouped = [id(parameter) for params in groups.values() for parameter in params]
    if sorted(grouped) != sorted({id(p) for p in model.parameters() if p.requires_grad}):
        raise RuntimeError("The parameter groups must hold every trainable parameter exactly once.")
    return [{"params": params, "lr": group_lr, "weight_decay": decay} for (group_lr, decay), params in groups.items()]


def _names_without_decay(model: nn.Module) -> set[str]:
    names: set[str] = set()
    for module_name, module in model.named_modules():
        prefix = f"{module_name}." if module_name else ""
        exempted = getattr(module, "no_weight_decay", None)
        names |= {f"{prefix}{name}" for name in exempted()} if callable(exempted) else set()
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
