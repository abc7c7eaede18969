"""Weights of other projects: what a checkpoint file holds, and how its tensors find their places.

Nothing here knows a model. A tensor belongs to the place whose name is the same, whatever the library writes before
it and whether it joins the words of a name with dots or underscores.
"""

import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

MODEL_ENTRIES = ("model", "state_dict")
"""Where training codes keep the weights in a checkpoint."""
PREFIXES = ("module.encoder_q.", "module.", "_backbone.")
"""What wrappers write before a name: MoCo's query encoder, DistributedDataParallel, transformers around timm."""
PER_LEVEL_NORMS = "hidden_states_norms."
"""Norms of a backbone's maps in transformers, which a classifier's checkpoint does not have."""
COUNTER = "num_batches_tracked"
"""A counter of BatchNorm that a frozen one does not have."""
MOST_EXAMPLES = 3


@dataclass(frozen=True)
class Copied:
    """What became of the tensors of a part.

    Args:
        names: Places in the module that were filled.
        left_out: Tensors that have no place in the module, counters of BatchNorm aside.
        renamed: Whether the tensors had other names than the places.
    """

    names: list[str]
    left_out: list[str]
    renamed: bool


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Read the weights in a checkpoint file without running any code in it.

    Args:
        path: A safetensors file, or a file of ``torch.save`` with a state dict, alone or under ``"model"`` or
            ``"state_dict"``.

    Returns:
        - The tensors by name.
        - Names of all else that the file holds, such as an optimizer.

    Raises:
        ValueError: If the file holds more than plain tensors, or no tensor.
    """
    if path.suffix == ".safetensors":
        return load_file(path), []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused right after
            checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"The checkpoint must be a file of plain tensors that `torch.load(weights_only=True)` reads, got {path}: "
            f"{reason} A pickle of NumPy arrays (.pkl, as detectron2's model zoo has) is not one: open it where you "
            'trust it and write its arrays as tensors with `torch.save({"model": tensors}, "checkpoint.pth")`.'
        ) from error
    others: list[str] = []
    for entry in MODEL_ENTRIES:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(entry), Mapping):
            others += [str(name) for name in checkpoint if name != entry]
            checkpoint = checkpoint[entry]
    content = checkpoint if isinstance(checkpoint, Mapping) else {}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"The checkpoint must hold named tensors, alone or under one of {list(MODEL_ENTRIES)}, got {path} with "
            f"{sorted(map(str, content)) or type(checkpoint).__name__}."
        )
    return tensors, others + [str(name) for name in content if name not in tensors]


def copy_tensors(module: nn.Module, tensors: Mapping[str, Tensor], what: str, source: str) -> Copied:
    """Fill a module with tensors.

    Args:
        module: What is filled, in place.
        tensors: By their names in the source.
        what: The argument that they were given as, for messages.
        source: Where they come from, for messages.

    Returns:
        What was filled and what was left out.

    Raises:
        ValueError: If the module has a place that no tensor fits.
    """
    places = {_plain(name): name for name in module.state_dict()}
    state = module.state_dict()
    chosen = _query_encoder(tensors)
    given = {_plain(name): name for name in chosen}
    pairs = {place: given[plain] for plain, place in places.items() if plain in given}
    lacking = [place for plain, place in places.items() if plain not in given and not place.endswith(COUNTER)]
    lacking = [name for name in lacking if PER_LEVEL_NORMS not in name]
    misfits = [
        f"`{name}` {tuple(tensors[name].shape)} for {tuple(state[place].shape)}"
        for place, name in pairs.items()
        if tensors[name].shape != state[place].shape
    ]
    if misfits:
        raise ValueError(
            f"`{what}` must have the sizes of the model that it enters, got {len(misfits)} tensors of other shapes "
            f"from {source}: {_examples(misfits)}. Choose another part, or a `config` with its sizes."
        )
    if lacking:
        raise ValueError(
            f"`{what}` must fill all {len(places)} tensors of its place, but {source} lacks {len(lacking)} of them: "
            f"{_examples(lacking)}. Choose another part, or a `config` with its architecture."
        )
    module.load_state_dict({place: tensors[name] for place, name in pairs.items()}, strict=False)
    used = set(pairs.values())
    return Copied(
        names=list(pairs),
        left_out=[name for name in tensors if name not in used and not name.endswith(COUNTER)],
        renamed=any(place != name for place, name in pairs.items()),
    )


def _query_encoder(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names that count: of MoCo's two encoders, those of the query encoder alone."""
    names = [name for name in tensors if name.startswith(PREFIXES[0])]
    return names or list(tensors)


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name.replace(".", "_")


def _examples(items: Iterable[str]) -> str:
    items = list(items)
    more = f" and {len(items) - MOST_EXAMPLES} more" if len(items) > MOST_EXAMPLES else ""
    return ", ".join(items[:MOST_EXAMPLES]) + more
