"""Query positions: what a layer of the query decoder knows of where each query looks.

A position code is added to a query in self-attention and cross-attention. The first, p_0, comes from the first box.
What follows is one of three heads, each with the same p_0:

- ``"anchor"``: every layer encodes its own box anew, as DAB-DETR, DINO and Mask DINO do.
- ``"static"``: p_0 stays, as in DETR. Only the code: boxes are refined and deformable attention follows them.
- ``"guided"``: p_{l+1} = p_0 + φ(PE(b_l)), where b_l is the newest box without its gradient: our reading of GQPos
  (https://arxiv.org/abs/2108.09691), of which only the abstract was at hand. φ starts at zero, so that a new guided
  head is a static one.

D_p is the hidden size.
"""

from torch import Tensor, nn
from transformers import initialization as init

from .position_encoding import encode_boxes
from .proposal_attention import PredictionHead

BOX_CODE_ORDER = (1, 0, 2, 3)
"""Boxes are encoded as (y, x, w, h)."""


class AnchorPositionHead(PredictionHead):
    """Encode each layer's box; the forward pass makes p_0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(2 * hidden_size, hidden_size, hidden_size, 2)

    def following(self, _first: Tensor, box_codes: Tensor, /) -> Tensor:
        """Make the position codes of the next layer.

        Args:
            _first: p_0, ``(batch, queries, D_p)``.
            box_codes: Codes of the newest boxes, ``(batch, queries, 2 * D_p)``.

        Returns:
            ``(batch, queries, D_p)``.
        """
        return self(box_codes)


class StaticPositionHead(AnchorPositionHead):
    """Keep p_0."""

    def following(self, first: Tensor, _box_codes: Tensor, /) -> Tensor:
        """Return p_0."""
        return first


class GuidedPositionHead(AnchorPositionHead):
    """Add the newest location to p_0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.update = nn.Sequential(
            nn.Linear(2 * hidden_size, hidden_size), nn.ReLU(), ZeroLinear(hidden_size, hidden_size)
        )

    def following(self, first: Tensor, box_codes: Tensor, /) -> Tensor:
        """Return p_0 + φ(PE(b_l))."""
        return first + self.update(box_codes)


class ZeroLinear(nn.Linear):
    """A linear layer whose output is zero until it has learned."""

    def reset_parameters(self) -> None:
        """Fill weight and bias with zeros."""
        init.zeros_(self.weight)
        init.zeros_(self.bias)


POSITION_HEADS: dict[str, type[AnchorPositionHead]] = {
    "anchor": AnchorPositionHead,
    "guided": GuidedPositionHead,
    "static": StaticPositionHead,
}


def build_position_head(query_position: str, hidden_size: int) -> AnchorPositionHead:
    """Create the head of a name.

    Args:
        query_position: A key of ``POSITION_HEADS``.
        hidden_size: D_p.

    Returns:
        The head.

    Raises:
        ValueError: If there is no such head.
    """
    if query_position not in POSITION_HEADS:
        raise ValueError(f"`query_position` must be one of {sorted(POSITION_HEADS)}, got {query_position!r}.")
    return POSITION_HEADS[query_position](hidden_size)


def position_input(boxes: Tensor, hidden_states: Tensor) -> Tensor:
    """Compute the sine code PE of boxes, which the heads take.

    Args:
        boxes: cxcywh in [0, 1], ``(batch, queries, 4)``.
        hidden_states: The queries, which say width and dtype, ``(batch, queries, D_p)``.

    Returns:
        ``(batch, queries, 2 * D_p)``.
    """
    codes = encode_boxes(boxes, hidden_states.shape[-1] // 2, BOX_CODE_ORDER)
    return codes.to(hidden_states.dtype)
