"""Candidates: label sets and the vocabulary, encoded once, kept until the weights change, and saved beside them."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from .saved_tensors import open_tensors

logger = logging.get_logger(__name__)

CANDIDATES_NAME = "candidates.safetensors"
"""The file of saved candidates in a checkpoint's folder."""
MAX_KEPT_LABELS = 2**17
"""Labels that are kept; the oldest make room, so that a server that is asked for anything does not grow for ever."""

_FORMAT = "transformers_upv2.candidates"


def weights_fingerprint(module: nn.Module) -> int:
    """A number that changes whenever a weight is replaced or written in place, as by an optimizer's step.

    PyTorch counts no writes to ``parameter.data``, as some optimizers make them, so the first value of every parameter
    is part of the number. It is quick and holds for one process; `weights_digest` outlives it.
    """
    parameters = _all_parameters(module)
    states = tuple((p.data_ptr(), p._version, p.dtype) for p in parameters)
    return hash((states, *_first_values(parameters)))


def _all_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters; ``module.parameters()`` takes several times as long, since it names them and seeks doubles."""
    modules = [module]
    for parent in modules:
        modules.extend(child for child in parent._modules.values() if child is not None)
    return [p for parent in modules for p in parent._parameters.values() if p is not None]


@torch.no_grad()
def _first_values(parameters: Sequence[nn.Parameter]) -> list[bytes]:
    """The first value of each parameter, as bytes of each kind, so that a device is waited for once."""
    kinds: dict[Hashable, list[Tensor]] = {}
    for p in parameters:
        if type(p) is nn.Parameter and not p.is_meta:  # others, such as shards, have no storage to look into
            kinds.setdefault((p.device, p.dtype), []).append(p.as_strided((min(p.numel(), 1),), (1,)))
    return [torch.cat(values).view(torch.uint8).cpu().numpy().tobytes() for values in kinds.values()]


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all weights with their names and types, the same in every process."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class CandidateCache:
    """Encoded candidates by what they are and for which route, valid for one state of the weights.

    Never part of a state dict; empty while the model trains.
    """

    def __init__(self) -> None:
        self._fingerprint: int | None = None
        self._entries: dict[str, Tensor] = {}
        self._labels: dict[Hashable, Tensor] = {}

    def get(self, model: nn.Module, key: str, encode: Callable[[], Tensor]) -> Tensor:
        """Return candidates that belong together, encoding them unless they are kept.

        Args:
            model: Whose weights encode.
            key: What is encoded.
            encode: Does it; called without gradient.

        Returns:
            Unit vectors, ``(candidates, D)``.
        """
        self._renew(model)
        if key not in self._entries:
            with torch.inference_mode(False), torch.no_grad():
                self._entries[key] = encode()
        return self._entries[key]

    def get_labels(self, model: nn.Module, keys: Sequence[Hashable], encode: Callable[[list[int]], Tensor]) -> Tensor:
        """Return one vector for each label, encoding at once those that are not kept.

        Args:
            model: Whose weights encode.
            keys: The token ids of each label.
            encode: Encodes the labels at these positions; called without gradient.

        Returns:
            Unit vectors, ``(labels, D)``.
        """
        self._renew(model)
        missing = {key: position for position, key in enumerate(keys) if key not in self._labels}
        if missing:
            with torch.inference_mode(False), torch.no_grad():  # what is kept may be used with gradient later
                encoded = encode(list(missing.values()))
            self._labels.update(zip(missing, encoded.unbind()))
        found = torch.stack([self._labels[key] for key in keys])
        while len(self._labels) > MAX_KEPT_LABELS:
            del self._labels[next(iter(self._labels))]
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._labels.clear()
        self._fingerprint = None

    def save(self, model: nn.Module, path: str | Path) -> None:
        """Write everything that is kept, and the digest of the weights that made it.

        Args:
            model: Whose weights encoded.
            path: A safetensors file, replaced if it exists.
        """
        self._renew(model)
        tensors = {f"entry.{key}": value.contiguous() for key, value in self._entries.items()}
        if self._labels:
            tensors["labels"] = torch.stack(list(self._labels.values()))
        made_of = {"weights": weights_digest(model), "labels": list(self._labels)}
        save_file(tensors, path, metadata={_FORMAT: json.dumps(made_of)})

    def load(self, model: nn.Module, path: str | Path) -> None:
        """Keep what `save` wrote, in place of anything else.

        Args:
            model: Whose weights will be asked.
            path: The file.

        Raises:
            ValueError: If the file holds something else or is damaged, or other weights made it.
        """
        device = next(model.parameters()).device
        with open_tensors(path, "save_candidates", device) as file:
            metadata = file.metadata() or {}
            if _FORMAT not in metadata:
                raise ValueError(f"`path` must be a file written by `save_candidates`, got '{path}'.")
            made_of = json.loads(metadata[_FORMAT])
            if made_of["weights"] != weights_digest(model):
                raise ValueError(
                    f"The candidates in '{path}' must come from the present weights and type of numbers, but others "
                    "made them. Call `save_candidates` again."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.clear()
        self._renew(model)
        keys = [freeze_ids(variants) for variants in made_of["labels"]]
        self._labels = dict(zip(keys, tensors.pop("labels").unbind())) if keys else {}
        self._entries = {name.removeprefix("entry."): value for name, value in tensors.items()}

    def _renew(self, model: nn.Module) -> None:
        """Forget what other weights made."""
        fingerprint = weights_fingerprint(model)
        if fingerprint != self._fingerprint:
            self.clear()
            self._fingerprint = fingerprint


def predictable_ids(config: PreTrainedConfig) -> Tensor:
    """Token ids of the vocabulary that can be predicted: all but ``<s> <pad> <unk> <mask>``, ascending."""
    excluded = [config.bos_token_id, config.pad_token_id, config.unk_token_id, config.mask_token_id]
    ids = torch.arange(config.vocab_size)
    return ids[~torch.isin(ids, torch.tensor(excluded))]


def freeze_ids(variants: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Make the token ids of a label's variants hashable."""
    return tuple(tuple(ids) for ids in variants)


def pad_ids(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack token id lists of different lengths.

    Args:
        rows: Token ids with ``<s>`` and ``</s>``.
        pad_token_id: Fills the right side.
        device: Where the tensors go.

    Returns:
        ``input_ids`` and ``attention_mask``, ``(rows, longest)``.
    """
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row)
        attention_mask[index, : len(row)] = 1
    return input_ids.to(device), attention_mask.to(device)


def average_variants(embeddings: Tensor, counts: Sequence[int]) -> Tensor:
    """Average the unit vectors of each label's variants (templates, synonyms) and normalize again.

    Args:
        embeddings: Of all variants in order, ``(variants, D)``.
        counts: Variants of each label.

    Returns:
        ``(labels, D)``.
    """
    if all(count == 1 for count in counts):
        return embeddings
    label = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts), output_size=len(embeddings)).to(
        embeddings.device
    )
    sums = embeddings.new_zeros(len(counts), embeddings.shape[1]).index_add(0, label, embeddings)
    return F.normalize(sums, dim=-1)


def require_names(labels: Sequence[str] | dict[str, Sequence[str]]) -> None:
    """Refuse one text, which would be taken for a list of its letters, and names that are no texts.

    Raises:
        ValueError: If ``labels`` is one text, or holds anything but texts.
    """
    if isinstance(labels, str):
        raise ValueError(
            f"`labels` must be a list of names, or a dict of names and their synonyms, got the text {labels!r}. "
            f"Pass `[{labels!r}]`."
        )
    wrong = [name for name in labels if not isinstance(name, str)]
    if wrong:
        raise ValueError(f"Each name in `labels` must be a text, got {wrong[0]!r}. Pass names, not ids.")


def label_texts(
    labels: Sequence[str] | dict[str, Sequence[str]], templates: Sequence[str] | None = None
) -> list[list[str]]:
    """Write out the texts that stand for each label: every synonym in every template.

    Args:
        labels: Names, or names with their synonyms; a single text is one synonym.
        templates: Sentences with one ``{}``; None: the bare name, as the paper's.

    Returns:
        The texts of each label.

    Raises:
        ValueError: If there is no label, an empty one, one without synonyms or one that is no text, or a template
            without ``{}``.
    """
    require_names(labels)
    if isinstance(templates, str):
        raise ValueError(
            f"`templates` must be a list of sentences, got the text {templates!r}. Pass `[{templates!r}]`."
        )
    for template in templates or ():
        if template.count("{}") != 1:
            raise ValueError(f"Each of `templates` must contain '{{}}' once, got {template!r}.")
    variants = labels.values() if isinstance(labels, dict) else labels
    synonyms = [[names] if isinstance(names, str) else list(names) for names in variants]
    for names in synonyms:
        require_names(names)
    if not synonyms or not all(names and all(name.strip() for name in names) for names in synonyms):
        raise ValueError(f"`labels` must hold at least one label and no empty one, got {shorten(list(labels))}.")
    return [
        [template.replace("{}", name) for name in names for template in templates or ("{}",)] for names in synonyms
    ]


def shorten(names: Sequence[str], limit: int = 5) -> str:
    """Write out the first few names for a message, and how many more there are."""
    rest = len(names) - limit
    return f"{list(names[:limit])}" + (f" and {rest} more" if rest > 0 else "")


def build_label_set(
    labels: Sequence[str] | dict[str, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    templates: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Tokenize labels for the config.

    Args:
        labels: Names, or names with their synonyms.
        tokenizer: The model's tokenizer.
        templates: Sentences with one ``{}``; each label is put into each. None: the bare name, as the paper's.

    Returns:
        ``{"names": [str], "token_ids": [[[int]]]}``.

    Raises:
        ValueError: If there is no label, an empty one, one that is no text or one without synonyms, or a template
            without ``{}``.
    """
    require_names(labels)
    names = list(labels)
    texts = label_texts(labels, templates)
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        logger.warning(
            f"Some names in `labels` stand for several classes: {shorten(repeated)}. The model sees only names, so it "
            "scores these classes alike and cannot tell them apart. Give each a name that says what is meant."
        )
    return {"names": names, "token_ids": [tokenizer(variants)["input_ids"] for variants in texts]}
