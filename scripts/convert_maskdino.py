"""Turn an official Mask DINO checkpoint into our proposal network and backbone.

    python scripts/convert_maskdino.py maskdino_r50.pth runs/maskdino --class-agnostic

Reads what github.com/IDEA-Research/MaskDINO published with ResNet-50 or Swin-L and writes a folder of a Uni-Perceiver
v2 in which only the backbone and the proposal network have weights, to put into a new model::

    UniPerceiverV2Model.from_pretrained_parts(backbone="runs/maskdino", proposal_network="runs/maskdino")

``from_pretrained`` reads the folder as well and initializes the rest. Its image processor prepares images as the
weights want them. Without ``--class-agnostic`` every number is the official one; with it, the class head starts anew
as one foreground logit with a prior of 0.01.

Not stated in the paper, chosen here: with ``--class-agnostic``, the one label embedding of the denoising queries is
the mean of the classes'. How anchors start from masks is not in the weights; it is as in the official configs
("mask2box" for ResNet-50 with four levels, else "bitmask"; a field of config.json). Weights that were trained
without mask-enhanced anchors convert as well, but our network always starts from masks.
"""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from transformers_upv2 import UniPerceiverV2Config, UniPerceiverV2ImageProcessor, UniPerceiverV2Model
from transformers_upv2.model.pretrained_weights import read_checkpoint
from transformers_upv2.model.proposal_query_decoder import PRIOR_PROBABILITY

BACKBONE, PIXEL_DECODER, PREDICTOR = "backbone.", "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
OUR_BACKBONE, OUR_NETWORK = "image_encoder.backbone.", "image_encoder.proposal_network."
QUERY_DECODER = OUR_NETWORK + "query_decoder."

# Pairs of official and our spelling, applied one after the other.
PIXEL_DECODER_WORDS = {
    "input_proj.": "input_projections.",
    "transformer.level_embed": "level_embedding",
    "transformer.encoder.layers.": "layers.",
    "mask_features.": "mask_projection.",
    "adapter_1.norm.": "lateral_projection.1.",
    "adapter_1.": "lateral_projection.0.",
    "layer_1.norm.": "fusion.1.",
    "layer_1.": "fusion.0.",
    ".self_attn.": ".self_attention.",
    ".norm1.": ".self_attention_norm.",
    ".linear": ".feed_forward.linear",
    ".norm2.": ".feed_forward.norm.",
}
PREDICTOR_WORDS = {
    "enc_output_norm.": "memory_norm.",
    "enc_output.": "memory_projection.",
    "class_embed.": "class_head.",
    "label_enc.": "label_embedding.",
    "mask_embed.": "mask_head.",
    "_bbox_embed.": "box_head.",
    "decoder.ref_point_head.": "box_position_head.",
    "decoder.layers.": "layers.",
    ".self_attn.": ".self_attention.",
    ".cross_attn.": ".cross_attention.",
    ".norm1.": ".cross_attention_norm.",
    ".norm2.": ".self_attention_norm.",
    ".linear": ".feed_forward.linear",
    ".norm3.": ".feed_forward.norm.",
}
RESNET_WORDS = {  # detectron2 to timm
    "stem.conv1.norm.": "bn1.",
    "stem.conv1.": "conv1.",
    **{f"res{stage + 1}.": f"layer{stage}." for stage in (1, 2, 3, 4)},
    ".shortcut.norm.": ".downsample.1.",
    ".shortcut.": ".downsample.0.",
    **{f".conv{number}.norm.": f".bn{number}." for number in (1, 2, 3)},
}
SWIN_WORDS = {  # Microsoft's Swin to transformers
    "patch_embed.proj.": "swin.embeddings.patch_embeddings.projection.",
    "patch_embed.norm.": "swin.embeddings.norm.",
    "layers.": "swin.encoder.layers.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.proj.": ".attention.o_proj.",
    ".attn.qkv.": ".attention.{}_proj.",
    ".attn.relative_position_bias_table": ".attention.relative_position_bias.relative_position_bias_table",
    **{f"norm{level}.": f"hidden_states_norms.stage{level + 1}." for level in (0, 1, 2, 3)},
}
ALIASES = {
    r"(.+\.predictor\.)(?:decoder\.)?bbox_embed\.\d+\.(.+)": r"\1_bbox_embed.\2",
    r"(.+\.predictor\.)decoder\.norm\.(.+)": r"\1decoder_norm.\2",
}
DROPPED = {
    r"criterion\.empty_weight": "class weights of a loss that official training does not use",
    r"backbone\..+\.relative_position_index": "follows from the window size",
}
UNUSED_NORM = OUR_BACKBONE + "swin.layernorm."
"""A norm that transformers' Swin has behind its last stage and that its maps never pass."""


@dataclass(frozen=True)
class Backbone:
    """A backbone that official checkpoints have.

    Args:
        preset: Ours with the same backbone.
        prefix: What our names begin with.
        words: Pairs of official and our spelling.
    """

    preset: str
    prefix: str
    words: Mapping[str, str]


BACKBONES = {
    "backbone.stem.conv1.weight": Backbone("resnet50", OUR_BACKBONE + "_backbone.", RESNET_WORDS),
    "backbone.patch_embed.proj.weight": Backbone("swin-large", OUR_BACKBONE, SWIN_WORDS),
}
"""By a tensor that only this one has."""


def find_backbone(official: Mapping[str, Tensor]) -> Backbone:
    """Recognize the layout of a checkpoint.

    Raises:
        ValueError: If it is none of the two.
    """
    needed = (PIXEL_DECODER + "transformer.level_embed", PREDICTOR + "class_embed.weight")
    found = [backbone for tensor, backbone in BACKBONES.items() if tensor in official]
    if not found or any(name not in official for name in needed):
        raise ValueError(
            "The checkpoint must be of official Mask DINO with ResNet-50 or Swin-L, in detectron2's layout with "
            f"{[*BACKBONES]} and {[*needed]}, got {len(official)} tensors such as {list(official)[:3]}."
        )
    return found[0]


def read_config(official: Mapping[str, Tensor]) -> UniPerceiverV2Config:
    """Read the network's sizes off the shapes; all else is as in the preset with the same backbone."""
    preset = find_backbone(official).preset

    def count_layers(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in official if name.startswith(prefix)})

    def width(name: str) -> int:
        return len(official[name]) if name in official else 0

    encoder, decoder = PIXEL_DECODER + "transformer.encoder.layers.", PREDICTOR + "decoder.layers."
    num_levels, hidden_size = official[PIXEL_DECODER + "transformer.level_embed"].shape
    sizes = {
        "hidden_size": hidden_size,
        "num_feature_levels": num_levels,
        "encoder_layers": count_layers(encoder),
        "encoder_ffn_size": width(encoder + "0.linear1.weight"),
        "decoder_layers": count_layers(decoder),
        "decoder_ffn_size": width(decoder + "0.linear1.weight"),
        "num_classes": width(PREDICTOR + "class_embed.weight"),
        "initial_box": "mask2box" if "swin" not in preset and num_levels == 4 else "bitmask",
    }
    return UniPerceiverV2Config.preset(preset, proposal_config=sizes)


def our_names(official_name: str, backbone: Backbone) -> list[str]:
    """Translate a name; three names for a fused query, key and value."""
    sections = {
        BACKBONE: (backbone.prefix, backbone.words),
        PIXEL_DECODER: (OUR_NETWORK + "pixel_decoder.", PIXEL_DECODER_WORDS),
        PREDICTOR: (QUERY_DECODER, PREDICTOR_WORDS),
    }
    for prefix, (our_prefix, words) in sections.items():
        if official_name.startswith(prefix):
            name = official_name.removeprefix(prefix)
            for theirs, ours in words.items():
                name = re.sub((r"^" if theirs[0] != "." else "") + re.escape(theirs), ours, name)
            return [our_prefix + name.format(part) for part in "qkv"] if "{}" in name else [our_prefix + name]
    return []


def convert(
    official: Mapping[str, Tensor], places: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """Give every tensor its place, without changing a number.

    Args:
        official: The official state dict.
        places: Our names with tensors of our shapes.

    Returns:
        - The tensors by our names.
        - Every official name in order, and what became of it.

    Raises:
        ValueError: If a tensor has no place or another shape, an alias differs from what it stands for, or a place
            stays empty.
    """
    backbone = find_backbone(official)
    tensors: dict[str, Tensor] = {}
    fates, wrong = [], []
    for name, value in official.items():
        original = next((re.sub(p, t, name) for p, t in ALIASES.items() if re.fullmatch(p, name)), None)
        reason = next((reason for pattern, reason in DROPPED.items() if re.fullmatch(pattern, name)), None)
        names = our_names(name, backbone)
        if original is not None:
            if original not in official or not torch.equal(value, official[original]):
                wrong.append(f"{name} is not equal to {original}, which it stands for")
            fates.append((name, f"alias of {original}"))
        elif reason is not None:
            fates.append((name, f"dropped: {reason}"))
        elif not names or any(ours not in places for ours in names):
            wrong.append(f"{name} {tuple(value.shape)} is unknown")
        else:
            pieces = value.chunk(len(names))
            wrong += [
                f"{name} {tuple(value.shape)} does not fit our {ours} {tuple(places[ours].shape)}"
                for ours, piece in zip(names, pieces, strict=True)
                if piece.shape != places[ours].shape
            ]
            tensors |= zip(names, pieces, strict=True)
            fates.append((name, f"used as {', '.join(names)}"))
    wrong += [f"our {name} {tuple(value.shape)} finds none" for name, value in places.items() if name not in tensors]
    if wrong:
        raise ValueError(
            "The checkpoint must have the tensors of official Mask DINO with ResNet-50 or Swin-L, but "
            f"{len(wrong)} do not: {'; '.join(wrong[:3])}."
        )
    return tensors, fates


def make_class_agnostic(tensors: dict[str, Tensor], config: UniPerceiverV2Config) -> None:
    """Replace the class head by a new one for foreground, in place, and the label embeddings by their mean."""
    hidden_size = config.proposal_config.hidden_size
    weight = torch.rand(1, hidden_size, generator=torch.Generator().manual_seed(0))
    tensors[QUERY_DECODER + "class_head.weight"] = (2 * weight - 1) / math.sqrt(hidden_size)
    prior_logit = math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY))
    tensors[QUERY_DECODER + "class_head.bias"] = torch.tensor([prior_logit])
    embedding = QUERY_DECODER + "label_embedding.weight"
    tensors[embedding] = tensors[embedding].mean(dim=0, keepdim=True)
    config.proposal_config.num_classes = 1


def empty_places(config: UniPerceiverV2Config) -> tuple[UniPerceiverV2Model, dict[str, Tensor]]:
    """Build a model without memory, and list the places that a checkpoint must fill."""
    with torch.device("meta"):
        model = UniPerceiverV2Model(config)
    prefixes = (OUR_BACKBONE, OUR_NETWORK)
    places = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(prefixes) and not name.startswith(UNUSED_NORM)
    }
    return model, places


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert one checkpoint and print what became of every tensor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="official .pth file")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--class-agnostic", action="store_true", help="one foreground class in place of the official")
    options = parser.parse_args(arguments)
    if not options.checkpoint.is_file():
        parser.error(f"the checkpoint must be a file, got {options.checkpoint}")
    official, others = read_checkpoint(options.checkpoint)
    config = read_config(official)
    model, places = empty_places(config)
    tensors, fates = convert(official, places)
    tensors = {name: value.float().contiguous() for name, value in tensors.items()}
    made = []
    if options.class_agnostic:
        made = [QUERY_DECODER + "class_head (new)", QUERY_DECODER + "label_embedding (mean of the official rows)"]
        make_class_agnostic(tensors, model.config)
    for name, parameter in model.named_parameters():
        if name.startswith(UNUSED_NORM):
            made.append(f"{name} (never used by the maps)")
            tensors[name] = (torch.ones if name.endswith("weight") else torch.zeros)(parameter.shape)
    model.save_pretrained(options.out, state_dict=tensors)
    processor = UniPerceiverV2ImageProcessor()
    processor.save_pretrained(options.out)
    print_table(fates, official, others, made)
    mean, std = ([round(255 * value, 3) for value in values] for values in (processor.image_mean, processor.image_std))
    print(f"{options.out}: images are RGB, mean {mean}, std {std}; {model.config.proposal_config.num_classes} classes")


def print_table(
    fates: Sequence[tuple[str, str]], official: Mapping[str, Tensor], others: Sequence[str], made: Sequence[str]
) -> None:
    """Print what became of every tensor, what else the file held, and what is not official."""
    for name, fate in fates:
        print(f"{name:72} {tuple(official[name].shape)!s:20} {fate}")
    for name in others:
        print(f"{name:72} {'not a tensor':20} dropped: no weights of the model")
    for name in made:
        print(f"{'-':72} {'':20} made: {name}")
    counts = {kind: sum(fate.startswith(kind) for _, fate in fates) for kind in ("used", "alias", "dropped")}
    print(f"{len(fates)} tensors: " + ", ".join(f"{number} {kind}" for kind, number in counts.items()))


if __name__ == "__main__":
    main()
