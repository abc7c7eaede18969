"""The feature maps of an image encoder that can be distilled: the pixel decoder's, and F_L.

A student's maps are recorded while it runs anyway; of a teacher nothing runs but what makes the maps.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from transformers_upv2.model.image_encoder import ImageEncoder


def map_channels(encoder: ImageEncoder) -> list[int]:
    """Return the channels of all maps, in the order of `compute_maps`."""
    network = encoder.proposal_network
    return [network.settings.hidden_size] * network.settings.num_feature_levels + [encoder.global_tokens.hidden_size]


def compute_maps(encoder: ImageEncoder, pixels: Tensor) -> list[Tensor]:
    """Run the backbone, the pixel decoder and the projection of F_L, and nothing else.

    Args:
        encoder: An image encoder.
        pixels: What its backbone sees, ``(batch, 3, H, W)``.

    Returns:
        The encoded maps of the pixel decoder, fine to coarse, then F_L as projected for the global tokens;
        ``(batch, C_l, H_l, W_l)`` each.
    """
    backbone = encoder.backbone(pixels, output_hidden_states=False, output_attentions=False, return_dict=True)
    feature_maps = list(backbone.feature_maps)
    encoded = encoder.proposal_network.pixel_decoder(feature_maps)
    grid = encoder.global_tokens.grid_projection(feature_maps[-1].flatten(2).transpose(1, 2))
    return _as_maps(encoded, grid, feature_maps[-1])


class MapRecorder:
    """Records the maps that an image encoder computes inside of a ``with`` block.

    Args:
        encoder: The image encoder, of which one forward is expected.

    Attributes:
        pixels: What the backbone saw, ``(batch, 3, H, W)``.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        self.modules: dict[str, nn.Module] = {
            "backbone": encoder.backbone,
            "pixel_decoder": encoder.proposal_network.pixel_decoder,
            "grid_projection": encoder.global_tokens.grid_projection,
        }
        self.calls: dict[str, tuple[Any, Any]] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> Self:
        for name, module in self.modules.items():
            self.handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles, self.calls = [], {}

    @property
    def pixels(self) -> Tensor:
        """What the backbone saw."""
        return self.calls["backbone"][0][0]

    @property
    def maps(self) -> list[Tensor]:
        """The maps, as `compute_maps` returns them."""
        (feature_maps,), encoded = self.calls["pixel_decoder"]
        return _as_maps(encoded, self.calls["grid_projection"][1], feature_maps[-1])

    def _hook(self, name: str) -> Any:
        def record(_: nn.Module, inputs: Any, output: Any) -> None:
            self.calls[name] = (inputs, output)

        return record


def _as_maps(
    encoded: tuple[Sequence[Tensor], Sequence[tuple[int, int]], Tensor], grid: Tensor, last_map: Tensor
) -> list[Tensor]:
    levels, spatial_shapes, _ = encoded
    flattened = [*zip(levels, spatial_shapes), (grid, last_map.shape[-2:])]
    return [cells.transpose(1, 2).unflatten(-1, tuple(shape)) for cells, shape in flattened]
