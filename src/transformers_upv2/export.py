"""Write a model as ONNX graphs that run without this package and without torch (extra ``onnx``).

Experts are merged, so each graph is a plain dense network. The graphs meet in one space of unit vectors: what a
graph says about an image or a text is compared with candidates by a dot product, times a scale that ``export.json``
states. So a detector is ``image_encoder.onnx``, ``image_decoder.onnx`` and the label vectors of
``candidate_encoder.onnx``, which are computed once.

==========================  ==========================================  ============================================
graph                       inputs                                      outputs
==========================  ==========================================  ============================================
``image_encoder``           ``pixel_values`` (batch, 3, H, W)           ``tokens, token_mask, boxes, objectness_logits,
                                                                        mask_embeddings, mask_features``
``image_decoder``           ``tokens, token_mask``                      ``states``: [SPE], global and proposal tokens
``caption_decoder``         ``tokens, token_mask, input_ids,            ``state``: what the next word is like
                            attention_mask`` (batch, words)
``text_decoder``            ``input_ids, attention_mask``               ``states``: [SPE] and every token
``candidate_encoder``       ``input_ids, attention_mask``               ``candidates``: labels and captions
``vocabulary_encoder``      ``input_ids, attention_mask``               ``candidates``: words, ``<s> word </s>``
==========================  ==========================================  ============================================

Fixed are the height and the width, and that an image fills the whole tensor: resize it to exactly this size.
Batches, texts and their lengths are dynamic.
"""

import copy
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from transformers_upv2.model.caption_layout import step_layout
from transformers_upv2.model.modeling_upv2 import UniPerceiverV2Model
from transformers_upv2.model.pretrained_upv2 import UniPerceiverV2PreTrainedModel
from transformers_upv2.model.tasks import TASKS, get_task

DESCRIPTION_NAME = "export.json"
IMAGE_OUTPUTS = ("tokens", "token_mask", "boxes", "objectness_logits", "mask_embeddings", "mask_features")

_NEEDED = ("onnx", "onnxscript")
_OPSET = 18
_EXAMPLE_BATCH = 2
_EXAMPLE_LENGTH = 5


class ImageEncoderGraph(nn.Module):
    """f(x) of images that fill the tensor."""

    def __init__(self, model: UniPerceiverV2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Return `IMAGE_OUTPUTS`; boxes are cxcywh in [0, 1] of the image."""
        encoding = self.model.image_encoder(pixel_values, keep_mask_features=True)
        return tuple(getattr(encoding, name) for name in IMAGE_OUTPUTS)


class ImageDecoderGraph(nn.Module):
    """g(f(x)) of images on the route of classification, detection and retrieval."""

    def __init__(self, model: UniPerceiverV2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Return unit vectors ``(batch, 1 + tokens, D)``."""
        return self.model.run_decoder(tokens, token_mask, TASKS["detection"].input_routes[0])


class CaptionDecoderGraph(nn.Module):
    """The slot behind the words of a caption."""

    def __init__(self, model: UniPerceiverV2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, token_mask: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the unit vector of the next word, ``(batch, D)``."""
        model = self.model
        positions = model.text_encoder.position_ids(attention_mask)
        layout = step_layout(input_ids, attention_mask, positions, model.config.mask_token_id)
        seen = nn.functional.pad(token_mask, (1, 0), value=True)
        return model.decode_caption(layout, tokens, seen)[:, 0]


class TextGraph(nn.Module):
    """g(f(x)) of texts on one route."""

    def __init__(self, model: UniPerceiverV2Model, route: str, *, only_spe: bool) -> None:
        super().__init__()
        self.model = model
        self.route = route
        self.only_spe = only_spe

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return unit vectors ``(batch, D)`` of [SPE], or ``(batch, 1 + tokens, D)`` of all."""
        states = self.model.decode_text(input_ids, attention_mask, self.route)
        return states[:, 0] if self.only_spe else states


@dataclass(frozen=True)
class Graph:
    """One graph to export.

    Args:
        build: Makes its module from the model.
        tasks: The training tasks that need it.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
    """

    build: Callable[[UniPerceiverV2Model], nn.Module]
    tasks: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


_IMAGE_TASKS = ("classification", "detection", "retrieval")
_TOKENS = ("tokens", "token_mask")
_TEXT = ("input_ids", "attention_mask")

GRAPHS: dict[str, Graph] = {
    "image_encoder": Graph(ImageEncoderGraph, (*_IMAGE_TASKS, "captioning"), ("pixel_values",), IMAGE_OUTPUTS),
    "image_decoder": Graph(ImageDecoderGraph, _IMAGE_TASKS, _TOKENS, ("states",)),
    "caption_decoder": Graph(CaptionDecoderGraph, ("captioning",), (*_TOKENS, *_TEXT), ("state",)),
    "text_decoder": Graph(
        lambda model: TextGraph(model, "text", only_spe=False), ("language_modeling",), _TEXT, ("states",)
    ),
    "candidate_encoder": Graph(
        lambda model: TextGraph(model, "label", only_spe=True), _IMAGE_TASKS, _TEXT, ("candidates",)
    ),
    "vocabulary_encoder": Graph(
        lambda model: TextGraph(model, "vocabulary", only_spe=True),
        ("captioning", "language_modeling"),
        _TEXT,
        ("candidates",),
    ),
}
"""All graphs by the names of their files."""


def export_onnx(
    model: UniPerceiverV2PreTrainedModel,
    folder: str | Path,
    height: int,
    width: int,
    tasks: Sequence[str] | None = None,
) -> list[Path]:
    """Write the graphs of a model, and ``export.json`` with what is fixed and how to compare vectors.

    Args:
        model: The base model or any task class; it is left alone.
        folder: Where to; made if it does not exist.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        tasks: Keys of ``TASKS`` that must work; None: all.

    Returns:
        The graphs' files. Weights lie beside each in a file of the same name with ``.data`` added.

    Raises:
        ImportError: If the extra ``onnx`` is not installed.
        ValueError: If there is no such task, or the images are too small for the model.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"`export_onnx` needs {missing}. Install them with `pip install transformers_upv2[onnx]`.")
    names = list(TASKS) if tasks is None else [get_task(name).name for name in tasks]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    deployed = _deployed(model, names)
    files = []
    for name, graph in GRAPHS.items():
        if set(graph.tasks).isdisjoint(names):
            continue
        program = export_graph(deployed, name, height, width)
        file = folder / f"{name}.onnx"
        torch.onnx.export(
            program,
            f=file,
            input_names=graph.inputs,
            output_names=graph.outputs,
            opset_version=_OPSET,
            external_data=True,
            verbose=False,
        )
        files.append(file)
    description = _describe(deployed, height, width, [file.stem for file in files])
    (folder / DESCRIPTION_NAME).write_text(json.dumps(description, indent=2) + "\n")
    return files


def export_graph(model: UniPerceiverV2PreTrainedModel, name: str, height: int, width: int) -> ExportedProgram:
    """Trace one graph with `torch.export`.

    Args:
        model: The base model or any task class, in evaluation mode.
        name: Key of ``GRAPHS``.
        height: Height of the images in pixels.
        width: Width of the images in pixels.

    Returns:
        The program, with dynamic batches and texts.

    Raises:
        ValueError: If there is no such graph, or the images are too small for the model.
    """
    if name not in GRAPHS:
        raise ValueError(f"`name` must be one of {sorted(GRAPHS)}, got {name!r}.")
    base: Any = getattr(model, "model", model)
    device = base.spe_token.device
    batch, length = Dim("batch"), Dim("length", max=base.config.text_config.max_position_embeddings - 4)
    ids = torch.full((_EXAMPLE_BATCH, _EXAMPLE_LENGTH), base.config.bos_token_id, device=device)
    examples: dict[str, tuple[Tensor, dict[int, Any]]] = {
        "input_ids": (ids, {0: batch, 1: length}),
        "attention_mask": (torch.ones_like(ids), {0: batch, 1: length}),
    }
    inputs = GRAPHS[name].inputs
    if not set(inputs).issubset(examples):
        pixels = torch.zeros(_EXAMPLE_BATCH, 3, height, width, device=device, dtype=base.spe_token.dtype)
        with torch.no_grad():
            encoding = base.encode_image(pixels)
        for key, value in (
            ("pixel_values", pixels),
            ("tokens", encoding.tokens),
            ("token_mask", encoding.token_mask),
        ):
            examples[key] = (value, {0: batch})
    arguments = tuple(examples[key][0] for key in inputs)
    dynamic_shapes = tuple(examples[key][1] for key in inputs)
    with torch.no_grad():
        return torch.export.export(GRAPHS[name].build(base).eval(), arguments, dynamic_shapes=dynamic_shapes)


def _deployed(model: UniPerceiverV2PreTrainedModel, tasks: Sequence[str]) -> UniPerceiverV2Model:
    """Copy the base model in float32 with merged experts."""
    base: Any = getattr(model, "model", model)
    deployed: UniPerceiverV2Model = copy.deepcopy(base).float().eval()
    if deployed.config.decoder_config.merged_routes is None:
        deployed.merge_experts(tasks)
    return deployed


def _describe(model: UniPerceiverV2Model, height: int, width: int, graphs: Sequence[str]) -> dict[str, Any]:
    """List what a user of the graphs has to know."""
    config, likelihood = model.config, model.likelihood
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "mask_token_id")
    return {
        "graphs": list(graphs),
        "height": height,
        "width": width,
        "num_proposals": config.num_proposals,
        "logit_scales": {task.name: likelihood.logit_scale(task.temperature).item() for task in TASKS.values()},
        "detection_score": config.detection_score,
        "region_bias": likelihood.region_bias.item(),
        **{name: getattr(config, name) for name in special},
        "label_sets": config.label_sets,
    }
