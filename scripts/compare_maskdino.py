"""Run official Mask DINO beside our proposal network, with the same random weights, and print how far they differ.

    git clone https://github.com/IDEA-Research/MaskDINO
    python scripts/compare_maskdino.py MaskDINO

Official code comes from that folder and is not changed: its pixel decoder, predictor, matcher and criterion, for
ResNet-50 with four levels and for Swin-L with five, on random feature maps, on a CPU. It needs neither detectron2 nor
its CUDA operator: the few names that it takes from there are stood in for here, and it falls back to its own
sampling in plain PyTorch. In training, both sides get the same noise of the denoising queries and the same points of
the mask losses. Weights go through the names of ``convert_maskdino.py``.

Of the candidate points, each side takes the most uncertain by its own masks. Where two are equally uncertain up to
rounding, the sides may take different ones, which moves the mask losses of one layer by some 1e-4 in a draw. So three
draws are compared, and each quantity must agree in most of them.
"""

import argparse
import importlib
import itertools
import re
import statistics
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from convert_maskdino import ALIASES, BACKBONES, OUR_NETWORK, our_names
from transformers_upv2.model.boxes import masks_to_boxes
from transformers_upv2.model.proposal_denoising import DenoisingNoise
from transformers_upv2.model.proposal_losses import SampledPoints, select_uncertain_points
from transformers_upv2.model.proposal_matcher import ProposalLossSettings, sample_points
from transformers_upv2.model.proposal_network import ProposalNetwork, ProposalSettings
from transformers_upv2.model.proposal_query_decoder import predict_masks

STAGES, STRIDES = ("res2", "res3", "res4", "res5"), (4, 8, 16, 32)
CANVAS, COUNTS, NUM_POINTS, NUM_CLASSES = (128, 192), (3, 2), 512, 80
SEEDS = (0, 1, 2)
TOLERANCE = 1e-4  # absolute up to 1, relative above


@dataclass(frozen=True)
class Layout:
    """One of the two official architectures.

    Args:
        channels: Of the four feature maps.
        num_levels: Encoded maps.
        initial_box: How anchors start from masks.
    """

    channels: tuple[int, ...]
    num_levels: int
    initial_box: str


LAYOUTS = {
    "ResNet-50": Layout((256, 512, 1024, 2048), 4, "mask2box"),
    "Swin-L": Layout((192, 384, 768, 1536), 5, "bitmask"),
}


class _Convolution(nn.Conv2d):
    """A convolution with a norm and an activation behind it, as detectron2 has it."""

    def __init__(self, *args: Any, norm: nn.Module | None = None, activation: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norm, self.activation = norm, activation

    def forward(self, states: Tensor) -> Tensor:
        states = super().forward(states)
        states = states if self.norm is None else self.norm(states)
        return states if self.activation is None else self.activation(states)


class _Masks:
    """Binary masks that know the boxes around them."""

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks

    def get_bounding_boxes(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(tensor=masks_to_boxes(self.masks, "bitmask"))


class _Registry:
    def __init__(self, _name: str = "") -> None:
        pass

    def register(self) -> Callable[[type], type]:
        return lambda registered: registered


def stand_in(points: SampledPoints) -> dict[str, types.ModuleType]:
    """Make the modules that official code imports from elsewhere; points of mask losses come from ``points``."""

    def uncertain_points(logits: Tensor, _uncertainty: Any, number: int, _oversample: float, share: float) -> Tensor:
        candidates, uniform = (
            given[:1, 0].expand(len(logits), -1, -1) for given in (points.candidates, points.uniform)
        )
        return select_uncertain_points(logits[:, 0], candidates, uniform, int(number * share))

    contents: dict[str, dict[str, Any]] = {
        "fvcore.nn.weight_init": {"c2_xavier_fill": lambda module: nn.init.kaiming_uniform_(module.weight, a=1)},
        "detectron2.config": {"configurable": lambda function: function},
        "detectron2.layers": {
            "Conv2d": _Convolution,
            "ShapeSpec": types.SimpleNamespace,
            "get_norm": lambda _norm, channels: nn.GroupNorm(32, channels),
        },
        "detectron2.modeling": {"SEM_SEG_HEADS_REGISTRY": _Registry()},
        "detectron2.structures": {"BitMasks": _Masks},
        "detectron2.utils.registry": {"Registry": _Registry},
        "detectron2.utils.comm": {"get_world_size": lambda: 1},
        "detectron2.projects.point_rend.point_features": {
            "point_sample": lambda maps, coordinates, **_: sample_points(maps, coordinates),
            "get_uncertain_point_coords_with_randomness": uncertain_points,
        },
        "MultiScaleDeformableAttention": {},
    }
    modules: dict[str, types.ModuleType] = {}
    for name, content in contents.items():
        for parent in itertools.accumulate(name.split("."), "{}.{}".format):
            modules.setdefault(parent, types.ModuleType(parent)).__path__ = []
        vars(modules[name]).update(content)
        if "." in name:
            parent, _, child = name.rpartition(".")
            setattr(modules[parent], child, modules[name])
    return modules


@contextmanager
def official_code(folder: Path, points: SampledPoints) -> Iterator[Callable[[str], types.ModuleType]]:
    """Import official files by name, past their packages' `__init__`, which ask for all of detectron2."""
    modules = stand_in(points)
    for package in ("maskdino", "maskdino.modeling", "maskdino.modeling.pixel_decoder"):
        modules[package] = types.ModuleType(package)
        modules[package].__path__ = [str(folder / package.replace(".", "/"))]
    to = Tensor.to

    def to_cpu(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return to(tensor, *("cpu" if argument == "cuda" else argument for argument in args), **kwargs)

    with (
        mock.patch.dict(sys.modules, modules),
        mock.patch.object(Tensor, "cuda", lambda tensor: tensor),
        mock.patch.object(Tensor, "to", to_cpu),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield lambda name: importlib.import_module(f"maskdino.modeling.{name}")


class Official(nn.Module):
    """Official pixel decoder and predictor under the names of a checkpoint."""

    def __init__(self, layout: Layout, load: Callable[[str], types.ModuleType]) -> None:
        super().__init__()
        shapes = {
            stage: types.SimpleNamespace(channels=channels, stride=stride)
            for stage, channels, stride in zip(STAGES, layout.channels, STRIDES, strict=True)
        }
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.pixel_decoder = load("pixel_decoder.maskdino_encoder").MaskDINOEncoder(
            shapes,
            transformer_dropout=0.0,
            transformer_nheads=8,
            transformer_dim_feedforward=2048,
            transformer_enc_layers=6,
            conv_dim=256,
            mask_dim=256,
            norm="GN",
            transformer_in_features=STAGES if layout.num_levels > len(STAGES) else STAGES[1:],
            common_stride=4,
            num_feature_levels=layout.num_levels - 1,
            total_num_feature_levels=layout.num_levels,
            feature_order="low2high",
        )
        self.sem_seg_head.predictor = load("transformer_decoder.maskdino_decoder").MaskDINODecoder(
            256,
            num_classes=NUM_CLASSES,
            hidden_dim=256,
            num_queries=300,
            nheads=8,
            dim_feedforward=2048,
            dec_layers=9,
            mask_dim=256,
            enforce_input_project=False,
            two_stage=True,
            dn="seg",
            noise_scale=0.4,
            dn_num=100,
            initialize_box_type=layout.initial_box,
            initial_pred=True,
            learn_tgt=False,
            total_num_feature_levels=layout.num_levels,
        )

    def forward(self, feature_maps: Sequence[Tensor], targets: Any = None) -> tuple[dict[str, Any], Any]:
        """Run both; predictions and what the criterion needs to know of the denoising queries."""
        features = dict(zip(STAGES, feature_maps, strict=True))
        mask_features, _, levels = self.sem_seg_head.pixel_decoder.forward_features(features, None)
        return self.sem_seg_head.predictor(levels, mask_features, None, targets=targets)


def official_losses(load: Callable[[str], types.ModuleType], output: Any, targets: Any, dn: Any) -> dict[str, Tensor]:
    """Compute official losses without weights."""
    matcher = load("matcher").HungarianMatcher(
        cost_class=4.0, cost_mask=5.0, cost_dice=5.0, cost_box=5.0, cost_giou=2.0, num_points=NUM_POINTS
    )
    losses = ["labels", "masks", "boxes"]
    criterion = load("criterion").SetCriterion(
        NUM_CLASSES, matcher, {}, 0.1, losses, NUM_POINTS, 3.0, 0.75, dn="seg", dn_losses=losses
    )
    return criterion(output, targets, dn)


@contextmanager
def given_numbers(noise: DenoisingNoise, points: SampledPoints) -> Iterator[None]:
    """Hand official code its random numbers, in the order in which it asks for them."""
    real = [(image, target) for image, count in enumerate(COUNTS) for target in range(count)]
    images, slots = (torch.tensor(column) for column in zip(*real, strict=True))
    # official queries: group by group, in a group image by image
    flips, labels, boxes = (
        values[images, :, slots].transpose(0, 1).flatten(0, 1)
        for values in (noise.label_flips, noise.new_labels, noise.boxes)
    )
    flipped = (labels[flips < 0.5 * 0.4] * NUM_CLASSES).long()
    with (
        mock.patch.object(torch, "rand_like", side_effect=[flips, boxes]),
        mock.patch.object(torch, "randint_like", return_value=flipped),
        mock.patch.object(torch, "rand", side_effect=itertools.cycle(points.matching[:, None])),
    ):
        yield


def draw_targets(generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Draw rectangles, some in each image."""
    height, width = CANVAS
    targets = []
    for count in COUNTS:
        sizes = torch.randint(24, 80, (count, 2), generator=generator)
        corners = (torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - sizes)).long()
        masks = torch.zeros(count, height, width)
        for mask, (left, top), (wide, high) in zip(masks, corners.tolist(), sizes.tolist(), strict=True):
            mask[top : top + high, left : left + wide] = 1
        boxes = torch.cat([corners + sizes / 2, sizes.float()], dim=1) / torch.tensor([width, height] * 2)
        labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
        targets.append({"class_labels": labels, "labels": labels, "boxes": boxes, "masks": masks})
    return targets


def compare(layout: Layout, folder: Path, seed: int) -> dict[str, float]:
    """Compare one architecture; largest differences by what was compared."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    feature_maps = [
        torch.randn(len(COUNTS), channels, CANVAS[0] // stride, CANVAS[1] // stride, generator=generator)
        for channels, stride in zip(layout.channels, STRIDES, strict=True)
    ]
    targets = draw_targets(generator)
    noise = DenoisingNoise.draw((len(COUNTS), 100 // max(COUNTS), max(COUNTS)), generator=generator)
    # one set of loss points for all masks, since the two sides list them in different orders
    rows = 11 + 10 * (100 // max(COUNTS))
    numbers = (torch.rand(1, 1, count, 2, generator=generator) for count in (3 * NUM_POINTS, NUM_POINTS // 4))
    candidates, uniform = (values.expand(rows, sum(COUNTS), -1, -1) for values in numbers)
    points = SampledPoints(torch.rand(len(COUNTS), NUM_POINTS, 2, generator=generator), candidates, uniform)
    with official_code(folder, points) as load:
        official = Official(layout, load)
        with torch.no_grad():  # away from zeros that would hide an error
            for parameter in official.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        ours = build_ours(layout, official)
        with torch.no_grad():
            theirs, _ = official.eval()(feature_maps)
        with given_numbers(noise, points), torch.no_grad():
            their_losses = official_losses(load, *_train(official, feature_maps, targets))
    with torch.no_grad():
        output = ours.eval()(feature_maps)
        training = ours(feature_maps, targets, noise)
        our_losses, _ = ours.losses(training, targets, points)
    if our_losses.keys() != their_losses.keys():
        raise RuntimeError(
            f"The losses must have the same names, differing: {our_losses.keys() ^ their_losses.keys()}."
        )
    pairs = {
        "logits": (output.class_logits, theirs["pred_logits"]),
        "boxes": (output.boxes, theirs["pred_boxes"]),
        "masks": (predict_masks(output.mask_embeddings, output.mask_features), theirs["pred_masks"]),
    } | {f"losses {name}": (our_losses[name], their_losses[name]) for name in their_losses}
    print(f"  masks reach {theirs['pred_masks'].abs().max():.1f}, logits {theirs['pred_logits'].abs().max():.1f}")
    print(f"  {len(their_losses)} losses, the largest {max(map(float, their_losses.values())):.2f}")
    # relative above 1: neighbouring fp32 numbers near a loss of 2000 are 1.2e-4 apart
    return {
        name: float(((one - other).abs() / other.abs().clamp_min(1)).max()) for name, (one, other) in pairs.items()
    }


def _train(official: Official, feature_maps: Sequence[Tensor], targets: Any) -> tuple[Any, Any, Any]:
    output, dn = official.train()(feature_maps, targets)
    return output, targets, dn


def build_ours(layout: Layout, official: Official) -> ProposalNetwork:
    """Build our network with official weights."""
    settings = ProposalSettings(
        num_feature_levels=layout.num_levels,
        encoder_ffn_size=2048,
        num_classes=NUM_CLASSES,
        initial_box=layout.initial_box,
    )
    network = ProposalNetwork(layout.channels, settings, ProposalLossSettings(num_points=NUM_POINTS))
    backbone = next(iter(BACKBONES.values()))  # there is none here
    tensors = {
        our_names(name, backbone)[0].removeprefix(OUR_NETWORK): value
        for name, value in official.state_dict().items()
        if not any(re.fullmatch(pattern, name) for pattern in ALIASES)
    }
    network.load_state_dict(tensors)
    return network


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare both architectures; exit with an error above the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkout of github.com/IDEA-Research/MaskDINO")
    options = parser.parse_args(arguments)
    if not (options.folder / "maskdino" / "modeling").is_dir():
        parser.error(f"the folder must be a checkout of IDEA-Research/MaskDINO, got {options.folder}")
    worst = 0.0
    for name, layout in LAYOUTS.items():
        print(f"{name}, {layout.num_levels} levels, {layout.initial_box}")
        draws = [compare(layout, options.folder, seed) for seed in SEEDS]
        middle = {key: statistics.median(draw[key] for draw in draws) for key in draws[0]}
        for group in ("logits", "boxes", "masks", "losses"):
            keys = [key for key in middle if key.startswith(group)]
            agreed, most = max(middle[key] for key in keys), max(draw[key] for draw in draws for key in keys)
            print(f"  {group:8} differ by at most {agreed:.1e} in most draws, {most:.1e} in any")
            worst = max(worst, agreed)
    if worst > TOLERANCE:
        sys.exit(f"The largest difference {worst:.1e} is above {TOLERANCE}.")


if __name__ == "__main__":
    main()
