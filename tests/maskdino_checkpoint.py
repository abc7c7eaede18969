"""State dicts in the layout of official Mask DINO, from torchvision's and timm's models and by its patterns."""

import re

import timm
import torch
import torchvision
from torch import Tensor, nn

HEADS, POINTS = 8, 4


def detectron2_resnet(resnet: nn.Module) -> dict[str, Tensor]:
    """Rename torchvision's ResNet as detectron2 does, without its classifier."""
    tensors = {}
    for name, value in resnet.state_dict().items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
        name = name if name.startswith("res") else f"stem.{name}"
        name = re.sub(r"bn(\d)", r"conv\1.norm", name)
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        tensors[f"backbone.{name}"] = value
    return tensors


def official_swin(swin: nn.Module, norms: nn.ModuleList, window: int) -> dict[str, Tensor]:
    """Rename timm's Swin as Microsoft's detection code does, with a norm for every level."""
    tensors = {}
    for name, value in swin.state_dict().items():
        if name.startswith(("head.", "norm.")):
            continue
        # timm shrinks at the beginning of a stage, the original at the end of the one before
        name = re.sub(r"^layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name)
        tensors[f"backbone.{name}"] = value
        if name.endswith("relative_position_bias_table"):
            index = name.replace("bias_table", "index")
            tensors[f"backbone.{index}"] = torch.zeros(window**2, window**2, dtype=torch.int64)
    for level, norm in enumerate(norms):
        tensors |= {f"backbone.norm{level}.{name}": value for name, value in norm.state_dict().items()}
    return tensors


def _linear(inputs: int, outputs: int) -> dict[str, list[int]]:
    return {"weight": [outputs, inputs], "bias": [outputs]}


def _norm(width: int) -> dict[str, list[int]]:
    return {"weight": [width], "bias": [width]}


def _sampling(width: int, levels: int) -> dict[str, dict[str, list[int]]]:
    points = HEADS * levels * POINTS
    return {
        "sampling_offsets": _linear(width, 2 * points),
        "attention_weights": _linear(width, points),
        "value_proj": _linear(width, width),
        "output_proj": _linear(width, width),
    }


def _heads(channels: list[int], levels: int, width: int, classes: int, ffn: int) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}

    def add(prefix: str, parts: dict) -> None:
        for name, part in parts.items():
            if isinstance(part, dict):
                add(f"{prefix}{name}.", part)
            else:
                shapes[prefix + name] = part

    pixel, predictor = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
    encoded = channels if levels > len(channels) else channels[1:]
    for level in range(levels):
        inside = level < len(encoded)
        kernel = [encoded[level], 1, 1] if inside else [channels[-1], 3, 3]
        add(f"{pixel}input_proj.{level}.", {"0": {"weight": [width, *kernel], "bias": [width]}, "1": _norm(width)})
    shapes[pixel + "transformer.level_embed"] = [levels, width]
    for layer in range(6):
        add(
            f"{pixel}transformer.encoder.layers.{layer}.",
            {
                "self_attn": _sampling(width, levels),
                "norm1": _norm(width),
                "linear1": _linear(width, ffn),
                "linear2": _linear(ffn, width),
                "norm2": _norm(width),
            },
        )
    add(pixel, {"mask_features": {"weight": [width, width, 1, 1], "bias": [width]}})
    add(pixel, {"adapter_1": {"weight": [width, channels[0], 1, 1], "norm": _norm(width)}})
    add(pixel, {"layer_1": {"weight": [width, width, 3, 3], "norm": _norm(width)}})
    mlp = {"0": _linear(width, width), "1": _linear(width, width)}
    add(
        predictor,
        {
            "enc_output": _linear(width, width),
            "enc_output_norm": _norm(width),
            "class_embed": _linear(width, classes),
            "label_enc": {"weight": [classes, width]},
            "mask_embed": {"layers": mlp | {"2": _linear(width, width)}},
            "decoder_norm": _norm(width),
            "_bbox_embed": {"layers": mlp | {"2": _linear(width, 4)}},
            "decoder": {
                "norm": _norm(width),
                "ref_point_head": {"layers": {"0": _linear(2 * width, width), "1": _linear(width, width)}},
            },
        },
    )
    attention = {"in_proj_weight": [3 * width, width], "in_proj_bias": [3 * width], "out_proj": _linear(width, width)}
    for layer in range(9):
        box = {"layers": mlp | {"2": _linear(width, 4)}}
        add(predictor, {"bbox_embed": {str(layer): box}, "decoder": {"bbox_embed": {str(layer): box}}})
        add(
            f"{predictor}decoder.layers.{layer}.",
            {
                "cross_attn": _sampling(width, levels),
                "self_attn": attention,
                **{f"norm{number}": _norm(width) for number in (1, 2, 3)},
                "linear1": _linear(width, 2048),
                "linear2": _linear(2048, width),
            },
        )
    shapes["criterion.empty_weight"] = [classes + 1]
    return shapes


def official_heads(
    channels: list[int], levels: int, *, width: int = 256, classes: int = 80, ffn: int = 2048
) -> dict[str, Tensor]:
    """Draw pixel decoder and predictor; shared modules occur under all their names, as `state_dict` writes them."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, shape in _heads(channels, levels, width, classes, ffn).items():
        original = re.sub(r"(decoder\.)?(?<!_)bbox_embed\.\d+", "_bbox_embed", name)
        original = original.replace("predictor.decoder.norm.", "predictor.decoder_norm.")
        if original not in tensors:
            tensors[original] = torch.randn(shape, generator=generator, device="cpu") * 0.05
        tensors[name] = tensors[original]
    return tensors


def official_resnet50(**sizes: int) -> dict[str, Tensor]:
    """A whole checkpoint with ResNet-50, four levels and random weights."""
    resnet = torchvision.models.resnet50(weights=None)
    return detectron2_resnet(resnet) | official_heads([256, 512, 1024, 2048], 4, **sizes)


def official_swin_large() -> dict[str, Tensor]:
    """The names and shapes of a whole checkpoint with Swin-L and five levels, without memory."""
    with torch.device("meta"):
        swin = timm.create_model("swin_large_patch4_window12_384", num_classes=0)
        channels = [192, 384, 768, 1536]
        norms = nn.ModuleList(nn.LayerNorm(width) for width in channels)
        return official_swin(swin, norms, 12) | official_heads(channels, 5)
