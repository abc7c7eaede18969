"""What a model consists of: parameters, memory and multiply-adds of each part, without its weights in memory.

The paper reports 308M parameters for Swin-Base and 446M for Swin-Large and does not say what it counts. The count that
fits both (``ParameterCounts.one_ffn``) is every parameter of image encoder, proposal network, image tokens, RoBERTa
without its pooler, g and its head, with one dense FFN in each layer of g instead of the experts.

Multiply-adds are those of matrix products, convolutions, attention and the sampling of deformable attention (five for
each sampled value: four neighbours and the weight). Norms, activations, softmax and additions are not counted. They
are those of the deployed form; merging the experts during the pass adds less than a thousandth.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Size, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config
from transformers_upv2.model.modeling_upv2 import UniPerceiverV2Model
from transformers_upv2.model.presets import PRETRAINED_PARTS
from transformers_upv2.model.tasks import ROUTES, routes_of

PARTS: dict[str, tuple[str, ...]] = {
    "backbone": ("image_encoder.backbone.",),
    "pixel_decoder": ("image_encoder.proposal_network.pixel_decoder.",),
    "query_decoder": ("image_encoder.proposal_network.query_decoder.",),
    "image_tokens": ("image_encoder.global_tokens.", "image_encoder.proposal_tokens.", "image_encoder."),
    "text_encoder": ("text_encoder.",),
    "unified_decoder": ("decoder.", "spe_token", "text_type"),
    "likelihood": ("likelihood.",),
}
"""Parts of the model and how the names of their parameters begin; the first that fits counts."""
LABEL_TOKENS = 4
"""Tokens of the label whose cost is stated: ``<s>``, a name of two tokens, ``</s>``."""
DEPLOYED_TASKS = ("classification", "detection", "retrieval")
"""Tasks of the deployed count unless others are asked for; they share their routes."""


@dataclass(frozen=True)
class PartSummary:
    """One part of the model as configured.

    Args:
        name: Key of ``PARTS``.
        parameters: Number of parameters.
        bytes_fp32: Parameters and buffers in fp32.
        bytes_bf16: The same in bf16; integer buffers keep their size.
        image_multiply_adds: To perceive one image and decode it on one route.
        label_multiply_adds: To encode one label of ``LABEL_TOKENS`` tokens.
        source: Where pretrained weights come from; None: trained from scratch.
    """

    name: str
    parameters: int
    bytes_fp32: int
    bytes_bf16: int
    image_multiply_adds: int
    label_multiply_adds: int
    source: str | None


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of the whole model in its four forms.

    Args:
        training: With all experts and their gates; None if the model is merged already.
        all_routes: Deployed for every task, one FFN for each route.
        tasks: Deployed for ``ModelSummary.tasks``.
        one_ffn: One FFN in each layer of g; the count that the paper's numbers fit.
    """

    training: int | None
    all_routes: int
    tasks: int
    one_ffn: int


@dataclass(frozen=True)
class ModelSummary:
    """Everything that `format_summary` prints; `dataclasses.asdict` makes it JSON.

    Args:
        parts: In the order of the data.
        counts: Parameters in four forms.
        tasks: Tasks of ``counts.tasks``.
        image_size: Height and width that the multiply-adds are for.
    """

    parts: tuple[PartSummary, ...]
    counts: ParameterCounts
    tasks: tuple[str, ...]
    image_size: tuple[int, int]


def summarize_preset(
    name: str, image_size: tuple[int, int] = (640, 640), tasks: Sequence[str] = DEPLOYED_TASKS
) -> ModelSummary:
    """Describe a preset; the arguments are those of `summarize_model`."""
    return summarize_model(UniPerceiverV2Config.preset(name), image_size, tasks, sources=PRETRAINED_PARTS[name])


def summarize_model(
    config: UniPerceiverV2Config,
    image_size: tuple[int, int] = (640, 640),
    tasks: Sequence[str] = DEPLOYED_TASKS,
    sources: Mapping[str, str] | None = None,
) -> ModelSummary:
    """Describe the model of a config; it is built on the meta device, so any size takes seconds and no memory.

    Args:
        config: Of the whole model.
        image_size: Height and width in pixels for the multiply-adds.
        tasks: Keys of ``TASKS`` for the count of a model that is deployed for them.
        sources: Where each of ``PARTS`` gets pretrained weights from.

    Returns:
        The summary.

    Raises:
        ValueError: If there is no such task, or the image gives fewer cells than queries.
    """
    num_routes = len(routes_of(tasks))
    model = _build(config)
    image_counts, label_counts = _multiply_adds(config, image_size)
    parts = tuple(
        PartSummary(
            name=name,
            parameters=sum(p.numel() for key, p in model.named_parameters() if part_of(key) == name),
            bytes_fp32=_storage(model, name, torch.float32),
            bytes_bf16=_storage(model, name, torch.bfloat16),
            image_multiply_adds=image_counts[name],
            label_multiply_adds=label_counts[name],
            source=(sources or {}).get(name),
        )
        for name in PARTS
    )
    counts = ParameterCounts(
        training=None if config.decoder_config.merged_routes else _deployed_parameters(model, None),
        all_routes=_deployed_parameters(model, len(ROUTES)),
        tasks=_deployed_parameters(model, num_routes),
        one_ffn=_deployed_parameters(model, 1),
    )
    return ModelSummary(parts, counts, tuple(tasks), image_size)


def part_of(name: str) -> str:
    """Name the part that a parameter or buffer belongs to.

    Raises:
        ValueError: If no part does.
    """
    for part, prefixes in PARTS.items():
        if name.startswith(prefixes):
            return part
    raise ValueError(f"`name` must begin like one of {PARTS}, got {name!r}.")


def count_multiply_adds(run: Callable[[], object], parts: Mapping[str, nn.Module]) -> dict[str, int]:
    """Count the multiply-adds of a computation and of the modules that take part in it.

    Args:
        run: The computation; on the meta device it costs nothing.
        parts: Modules by name, none inside of another.

    Returns:
        Multiply-adds of each part, and of everything else as ``"rest"``.
    """
    counts = dict.fromkeys(parts, 0)
    formulas = {
        torch.ops.aten.grid_sampler_2d: _grid_sample_flops,
        torch.ops.aten._embedding_bag_forward_only: _embedding_bag_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter, torch.no_grad():
        handles = [handle for name in parts for handle in _attribute(name, parts[name], counter, counts)]
        run()
        total = counter.get_total_flops()
    for handle in handles:
        handle.remove()
    counts["rest"] = total - sum(counts.values())
    return {name: flops // 2 for name, flops in counts.items()}


def format_summary(summary: ModelSummary) -> str:
    """Lay a summary out as text for a terminal."""
    height, width = summary.image_size
    heads = ("part", "parameters", "fp32", "bf16", f"{height} x {width}", "label", "pretrained from")
    rows: list[Sequence[str]] = [heads]
    for part in summary.parts:
        costs = [_billions(part.image_multiply_adds), _billions(part.label_multiply_adds)]
        sizes = (_millions(part.parameters), _megabytes(part.bytes_fp32), _megabytes(part.bytes_bf16))
        rows.append((part.name, *sizes, *costs, part.source or "nothing: trained from scratch"))
    total = [sum(getattr(part, field) for part in summary.parts) for field in _SUMMED_FIELDS]
    rows.append(("total", _millions(total[0]), *map(_megabytes, total[1:3]), *map(_billions, total[3:]), ""))
    forms = {
        "in training, all experts": summary.counts.training,
        "deployed with all routes": summary.counts.all_routes,
        f"deployed for {', '.join(summary.tasks)}": summary.counts.tasks,
        "with one FFN in each layer of g": summary.counts.one_ffn,
    }
    counts = [("form", "parameters", "fp32", "bf16")]
    counts += [(form, _millions(n), _megabytes(4 * n), _megabytes(2 * n)) for form, n in forms.items() if n]
    notes = (
        f"{height} x {width} and label: multiply-adds to perceive and decode one image of this size, and to encode\n"
        f"one label of {LABEL_TOKENS} tokens. The paper's 308M (Swin-Base) and 446M (Swin-Large) fit the last form;\n"
        "it does not say what it counts."
    )
    return "\n\n".join([_table(rows), _table(counts), notes])


_SUMMED_FIELDS = ("parameters", "bytes_fp32", "bytes_bf16", "image_multiply_adds", "label_multiply_adds")


def _build(config: UniPerceiverV2Config) -> UniPerceiverV2Model:
    with torch.device("meta"):
        return UniPerceiverV2Model(config).eval()


def _storage(model: nn.Module, part: str, dtype: torch.dtype) -> int:
    """Bytes of a part's parameters and buffers."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return sum(
        tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.element_size())
        for name, tensor in tensors
        if part_of(name) == part
    )


def _deployed_parameters(model: UniPerceiverV2Model, num_ffns: int | None) -> int:
    """Parameters of a model with so many dense FFNs in each layer of g; None: as it is."""
    total = sum(p.numel() for p in model.parameters())
    if num_ffns is None:
        return total
    for layer in model.decoder.layers:
        ffn = layer.feed_forward
        dense = sum(p[0].numel() for linear in (ffn.up_projection, ffn.down_projection) for p in linear.parameters())
        total += num_ffns * dense - sum(p.numel() for p in ffn.parameters())
    return total


def _multiply_adds(config: UniPerceiverV2Config, image_size: tuple[int, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Count for an image and for a label, by part."""
    config = copy.deepcopy(config)
    # every route costs the same, and a merged one needs no choice that depends on numbers
    (route, *_) = config.decoder_config.merged_routes = config.decoder_config.merged_routes or list(ROUTES)
    model = _build(config)
    encoder = model.image_encoder
    pixels = torch.empty((1, 3, *image_size), device="meta")
    ids = torch.empty((1, LABEL_TOKENS), dtype=torch.long, device="meta")
    seeing = {
        "backbone": encoder.backbone,
        "pixel_decoder": encoder.proposal_network.pixel_decoder,
        "query_decoder": encoder.proposal_network.query_decoder,
    }
    encoding = encoder(pixels)
    seen = count_multiply_adds(lambda: encoder(pixels), seeing)
    decoded = count_multiply_adds(
        lambda: model.run_decoder(encoding.tokens, encoding.token_mask, route), {"unified_decoder": model.decoder}
    )
    label = count_multiply_adds(
        lambda: model.encode_candidates(ids, torch.ones_like(ids), route),
        {"text_encoder": model.text_encoder, "unified_decoder": model.decoder},
    )
    none = dict.fromkeys(PARTS, 0)
    image = {**none, **seen, **decoded, "image_tokens": seen["rest"], "likelihood": decoded["rest"]}
    return image, {**none, **label, "likelihood": label["rest"]}


def _attribute(
    name: str, module: nn.Module, counter: FlopCounterMode, counts: dict[str, int]
) -> list[torch.utils.hooks.RemovableHandle]:
    """Let a module add what it computes to its count."""

    def before(*_: object) -> None:
        counts[name] -= counter.get_total_flops()

    def after(*_: object) -> None:
        counts[name] += counter.get_total_flops()

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _grid_sample_flops(maps: Size, grid: Size, *_: object, **__: object) -> int:
    """Two for each of four neighbours and for the attention weight of every sampled value."""
    return 10 * maps[0] * maps[1] * grid[1] * grid[2]


def _embedding_bag_flops(table: Size, rows: Size, *_: object, **__: object) -> int:
    """The same for each value of a point's four rows, the attention weight being a fourth part of a row's weight."""
    return 10 * table[1] * rows[0] // 4


def _attention_flops(query: Size, key: Size, value: Size, *_: object, **__: object) -> int:
    """As torch counts it for the kernels of other devices."""
    return sdpa_flop_count(query, key, value)


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f} M"


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.1f} MB"


def _billions(number: int) -> str:
    return f"{number / 1e9:.3f} G" if number else "-"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns: names to the left, numbers to the right, the last of seven to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index in (0, 6) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
