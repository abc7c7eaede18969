"""A layer of the query decoder, and its deformable attention; the dense one has a file of its own.

D_p is the hidden size.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .proposal_attention import FeedForward, MultiScaleDeformableAttention, init_xavier_


class DeformableCrossAttention(MultiScaleDeformableAttention):
    """Deformable attention of queries, for which a padded pixel is an ordinary one, as in Mask DINO."""

    def forward(
        self,
        hidden_states: Tensor,
        references: Tensor,
        source_states: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        _image_extents: Tensor | None = None,
    ) -> Tensor:
        """Gather what the queries look at, see :class:`MultiScaleDeformableAttention`."""
        return super().forward(hidden_states, references, source_states, spatial_shapes)


class ProposalDecoderLayer(GradientCheckpointingLayer):
    """Self-attention among queries, cross-attention to the maps, a feed-forward layer."""

    def __init__(
        self, hidden_size: int, cross_attention: Callable[[], nn.Module], *, num_heads: int, ffn_size: int
    ) -> None:
        """Create the layer.

        Args:
            hidden_size: D_p.
            cross_attention: Makes the attention to the maps, which is called as `DenseAttention` is.
            num_heads: Heads of the self-attention.
            ffn_size: Width of the feed-forward layer.
        """
        super().__init__()
        self.self_attention = nn.MultiheadAttention(hidden_size, num_heads, batch_first=True)
        self.self_attention_norm = nn.LayerNorm(hidden_size)
        self.cross_attention = cross_attention()
        self.cross_attention_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size, ffn_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the self-attention; the other parts fill themselves."""
        init.xavier_uniform_(self.self_attention.in_proj_weight)
        init.zeros_(self.self_attention.in_proj_bias)
        init_xavier_(self.self_attention.out_proj)

    def forward(
        self,
        hidden_states: Tensor,
        position_codes: Tensor,
        reference_boxes: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        attention_mask: Tensor | None = None,
        image_extents: Tensor | None = None,
    ) -> Tensor:
        """Update the queries.

        Args:
            hidden_states: Queries, ``(batch, queries, D_p)``.
            position_codes: Codes of their boxes, ``(batch, queries, D_p)``.
            reference_boxes: cxcywh in [0, 1], float32, ``(batch, queries, 4)``.
            memory: Encoded maps, ``(batch, cells, D_p)``.
            spatial_shapes: (H_l, W_l) of each map in ``memory``.
            attention_mask: True = must not be attended, ``(queries, queries)``.
            image_extents: See :class:`DenseAttention`, ``(batch, 2)``.

        Returns:
            ``(batch, queries, D_p)``.
        """
        queries = hidden_states + position_codes
        attended, _ = self.self_attention(
            queries, queries, hidden_states, attn_mask=attention_mask, need_weights=False
        )
        hidden_states = self.self_attention_norm(hidden_states + attended)
        attended = self.cross_attention(
            hidden_states + position_codes, reference_boxes, memory, spatial_shapes, image_extents
        )
        hidden_states = self.cross_attention_norm(hidden_states + attended)
        return self.feed_forward(hidden_states)
