"""Which of the Trainer's own arguments a model's ``forward`` takes."""

import inspect
from typing import Any

from torch import nn


def extra_arguments(model: nn.Module) -> set[str]:
    """Return which of ``task`` and ``step_seed`` a model's ``forward`` names, or that of the model under PEFT's."""
    base: Any = model
    if hasattr(base, "get_base_model"):
        base = base.get_base_model()
    return {"task", "step_seed"} & set(inspect.signature(base.forward).parameters)
