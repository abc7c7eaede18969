"""Query decoder of the proposal network: query selection, box refinement and the shared heads.

Reference: Mask DINO, sections 3.2 to 3.4 (https://arxiv.org/abs/2206.02777). Official weights
depend on details that the paper does not tell, kept here on purpose:

- the feature maps are read coarse to fine, and the prior size of a proposal is 0.05 * 2^l in that
  order (largest in the finest map);
- one class head, one box head and one mask head serve encoder proposals and all layers;
- ``decoder_norm`` is applied twice before the class and mask heads and once before the box head,
  while boxes are refined for the next layer from the states without norm;
- a layer's box adds to the previous layer's box with its gradient ("look forward twice"), but the
  next layer receives it without.

D_p is the hidden size, Q the number of queries, L the number of layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .boxes import inverse_sigmoid, masks_to_boxes, xyxy_to_cxcywh
from .position_encoding import grid_centers
from .proposal_attention import PredictionHead, init_uniform_, init_xavier_
from .proposal_decoder_layer import ProposalDecoderLayer
from .proposal_denoising import DenoisingQueries, denoising_attention_mask
from .proposal_query_position import build_position_head, position_input

PRIOR_BOX_SIZE = 0.05
PRIOR_PROBABILITY = 0.01
PROPOSAL_MARGIN = 0.01
MASK_CHUNK_ELEMENTS = 2**24
"""Mask logits that exist at one time while boxes are computed from masks (64 MB in float32)."""


def predict_masks(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    """Compute full masks, which are dot products of queries and pixels.

    In float32 at least: boxes are read off the masks, and a CPU without bfloat16 units is ten times slower in it.

    Args:
        mask_embeddings: ``(batch, queries, D_p)``.
        mask_features: ``(batch, D_p, H/4, W/4)``.

    Returns:
        Logits, ``(batch, queries, H/4, W/4)``.
    """
    dtype = torch.promote_types(mask_features.dtype, torch.float32)
    return torch.einsum("bqd,bdhw->bqhw", mask_embeddings.to(dtype), mask_features.to(dtype))


@dataclass
class ProposalPredictions:
    """What the heads say about each query; P predictions are stacked in the first dimension."""

    class_logits: Tensor
    """``(P, batch, queries, num_classes)``."""
    boxes: Tensor
    """cxcywh in [0, 1] of the canvas, float32, ``(P, batch, queries, 4)``."""
    mask_embeddings: Tensor
    """``(P, batch, queries, D_p)``."""


@dataclass
class TrainingPredictions:
    """All predictions that have losses."""

    matching: ProposalPredictions
    """P = 2 + L: encoder proposals, the decoder's input queries, each layer."""
    denoising: ProposalPredictions | None
    """P = 1 + L: the decoder's input queries, each layer; None without denoising queries."""
    num_groups: int
    """Denoising groups."""


class ProposalQueryDecoder(nn.Module):
    """Select queries from the encoded maps and refine them."""

    def __init__(
        self,
        hidden_size: int,
        layers: Sequence[ProposalDecoderLayer],
        *,
        num_queries: int,
        num_classes: int = 1,
        initial_box: str = "mask2box",
        query_position: str = "anchor",
    ) -> None:
        """Create the decoder.

        Args:
            hidden_size: D_p.
            layers: The decoder layers.
            num_queries: Q.
            num_classes: Outputs of the class head; 1 = foreground.
            initial_box: How the first box is computed from a query's mask, ``"mask2box"`` or
                ``"bitmask"``, see :func:`masks_to_boxes`.
            query_position: What the layers know of a query's place, a key of ``POSITION_HEADS``.

        Raises:
            ValueError: If ``initial_box`` is neither of the two, or there is no such ``query_position``.
        """
        super().__init__()
        if initial_box not in ("mask2box", "bitmask"):
            raise ValueError(f"`initial_box` must be 'mask2box' or 'bitmask', got {initial_box!r}.")
        self.num_queries = num_queries
        self.initial_box = initial_box
        self.memory_projection = nn.Linear(hidden_size, hidden_size)
        self.memory_norm = nn.LayerNorm(hidden_size)
        self.class_head = nn.Linear(hidden_size, num_classes)
        self.label_embedding = nn.Embedding(num_classes, hidden_size)
        self.box_head = PredictionHead(hidden_size, hidden_size, 4, 3)
        self.mask_head = PredictionHead(hidden_size, hidden_size, hidden_size, 3)
        self.box_position_head = build_position_head(query_position, hidden_size)
        self.decoder_norm = nn.LayerNorm(hidden_size)
        self.layers = nn.ModuleList(layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the heads; a box starts at its reference, a class at probability 0.01.

        Not stated in the paper, chosen here: the prior of the class head (official code has none
        and starts with losses in the thousands).
        """
        init_uniform_(self.memory_projection)
        init_uniform_(self.class_head)
        prior_logit = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        init.constant_(self.class_head.bias, prior_logit)
        init.normal_(self.label_embedding.weight)
        init.zeros_(self.box_head.layers[-1].weight)
        init.zeros_(self.box_head.layers[-1].bias)
        for layer in self.box_position_head.layers:
            init_xavier_(layer)

    def forward(
        self,
        levels: Sequence[Tensor],
        spatial_shapes: Sequence[tuple[int, int]],
        mask_features: Tensor,
        denoising: DenoisingQueries | None = None,
        all_predictions: bool = False,
        image_extents: Tensor | None = None,
    ) -> tuple[Tensor, ProposalPredictions, TrainingPredictions | None]:
        """Decode.

        Args:
            levels: Encoded maps, fine to coarse, ``(batch, H_l * W_l, D_p)`` each.
            spatial_shapes: (H_l, W_l) of each map.
            mask_features: ``(batch, D_p, H/4, W/4)``.
            denoising: Denoising queries; they enter the layers before the matching queries.
            all_predictions: Also return what the losses need.
            image_extents: See :class:`DenseAttention`, ``(batch, 2)``.

        Returns:
            - Matching queries after the last layer and one norm, ``(batch, Q, D_p)``.
            - The last layer's predictions for them, P = 1.
            - All predictions, or None.

        Raises:
            ValueError: If the maps have fewer cells than Q.
        """
        spatial_shapes = list(spatial_shapes)[::-1]
        memory = torch.cat(list(levels)[::-1], dim=1)
        selected, prior_logits = self._select(memory, spatial_shapes)
        selected_classes, selected_masks = self._classes_and_masks(selected)
        queries = selected.detach()
        box_logits = self._boxes_from_masks(selected_masks.detach(), mask_features.detach())
        attention_mask = None
        if denoising is not None:
            content = self.label_embedding(denoising.labels) * denoising.is_target[..., None]
            queries = torch.cat((content.to(queries.dtype), queries), dim=1)
            box_logits = torch.cat((denoising.box_logits, box_logits), dim=1)
            group_size = denoising.num_queries // denoising.num_groups
            attention_mask = denoising_attention_mask(
                denoising.num_groups, group_size, self.num_queries, memory.device
            )
        states, references = self._decode(
            queries, box_logits.sigmoid(), memory, spatial_shapes, attention_mask, image_extents
        )
        if not all_predictions:
            return states[-1], self._predict(states[-1:], references[-1:]), None
        encoder = ProposalPredictions(
            selected_classes[None],
            (self.box_head(selected).float() + prior_logits).sigmoid()[None],
            selected_masks[None],
        )
        training = self._training_predictions(encoder, queries, states, references, denoising)
        matching = training.matching
        last = ProposalPredictions(matching.class_logits[-1:], matching.boxes[-1:], matching.mask_embeddings[-1:])
        return states[-1][:, -self.num_queries :], last, training

    def _select(self, memory: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Choose the Q cells with the highest class logit.

        Returns:
            - Projected features of the cells, ``(batch, Q, D_p)``.
            - Logits of their prior boxes, infinite near the border, ``(batch, Q, 4)``.
        """
        if memory.shape[1] < self.num_queries:
            raise ValueError(
                f"The canvas must give at least `num_queries` = {self.num_queries} cells, got "
                f"{memory.shape[1]} cells in maps of {list(spatial_shapes)}. Use larger images or "
                "fewer queries."
            )
        prior_logits, is_valid = prior_box_logits(spatial_shapes, memory.device)
        memory = memory.masked_fill(~is_valid[:, None], 0)
        memory = self.memory_norm(self.memory_projection(memory))
        scores = self.class_head(memory).amax(dim=-1)  # (batch, cells)
        chosen = scores.topk(self.num_queries, dim=1).indices  # (batch, Q)
        selected = memory.gather(1, chosen[..., None].expand(-1, -1, memory.shape[-1]))
        return selected, prior_logits[chosen]

    @torch.no_grad()
    def _boxes_from_masks(self, mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
        """Compute logits of the boxes around the queries' masks, ``(batch, Q, 4)``, float32."""
        batch, _, height, width = mask_features.shape
        chunk_size = self.num_queries
        if not torch.compiler.is_compiling():  # there the batch may have any size
            chunk_size = max(1, MASK_CHUNK_ELEMENTS // (batch * height * width))
        chunks = [
            masks_to_boxes(predict_masks(chunk, mask_features) > 0, self.initial_box)
            for chunk in mask_embeddings.split(chunk_size, dim=1)
        ]
        boxes = xyxy_to_cxcywh(torch.cat(chunks, dim=1))
        return inverse_sigmoid(boxes / boxes.new_tensor([width, height, width, height]))

    def _decode(
        self,
        queries: Tensor,
        reference_boxes: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        attention_mask: Tensor | None,
        image_extents: Tensor | None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run the layers; return each layer's normed states and its input boxes with gradient."""
        states, references = [], [reference_boxes]
        hidden_states = queries
        first_codes = codes = self.box_position_head(position_input(reference_boxes, hidden_states))
        for index, layer in enumerate(self.layers):
            hidden_states = layer(
                hidden_states,
                codes,
                reference_boxes,
                memory,
                spatial_shapes,
                attention_mask,
                image_extents=image_extents,
            )
            states.append(self.decoder_norm(hidden_states))
            if index + 1 < len(self.layers):
                boxes = self._refine(hidden_states, reference_boxes)
                references.append(boxes)
                reference_boxes = boxes.detach()
                box_codes = position_input(reference_boxes, hidden_states)
                codes = self.box_position_head.following(first_codes, box_codes)
        return states, references

    def _refine(self, hidden_states: Tensor, reference_boxes: Tensor) -> Tensor:
        """Move boxes, ``(..., 4)``, float32."""
        return (self.box_head(hidden_states).float() + inverse_sigmoid(reference_boxes)).sigmoid()

    def _classes_and_masks(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the class head and the mask head behind another norm."""
        states = self.decoder_norm(states)
        return self.class_head(states), self.mask_head(states)

    def _predict(self, states: Sequence[Tensor], references: Sequence[Tensor]) -> ProposalPredictions:
        """Apply all heads to several layers at once."""
        stacked = torch.stack(list(states))
        class_logits, mask_embeddings = self._classes_and_masks(stacked)
        boxes = self._refine(stacked, torch.stack(list(references)))
        return ProposalPredictions(class_logits, boxes, mask_embeddings)

    def _training_predictions(
        self,
        encoder: ProposalPredictions,
        queries: Tensor,
        states: Sequence[Tensor],
        references: Sequence[Tensor],
        denoising: DenoisingQueries | None,
    ) -> TrainingPredictions:
        """Stack the predictions of the encoder, the input queries and all layers."""
        class_logits, mask_embeddings = self._classes_and_masks(torch.stack([queries, *states]))
        boxes = self._refine(torch.stack(list(states)), torch.stack(list(references)))
        boxes = torch.cat((references[0][None], boxes))
        if denoising is None:
            # keeps `label_embedding` in the graph, which DistributedDataParallel needs
            class_logits = class_logits + 0 * self.label_embedding.weight.sum()
        split = denoising.num_queries if denoising is not None else 0
        matching = ProposalPredictions(
            torch.cat((encoder.class_logits, class_logits[:, :, split:])),
            torch.cat((encoder.boxes, boxes[:, :, split:])),
            torch.cat((encoder.mask_embeddings, mask_embeddings[:, :, split:])),
        )
        if denoising is None:
            return TrainingPredictions(matching, None, 0)
        noised = ProposalPredictions(class_logits[:, :, :split], boxes[:, :, :split], mask_embeddings[:, :, :split])
        return TrainingPredictions(matching, noised, denoising.num_groups)


def prior_box_logits(
    spatial_shapes: Sequence[tuple[int, int]], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Compute a box around the center of every cell, larger by a factor of two from map to map.

    Args:
        spatial_shapes: (H_l, W_l) of each map, coarse to fine.
        device: Where to compute.

    Returns:
        - Logits of cxcywh, infinite where the box is not valid, ``(cells, 4)``, float32.
        - Whether all four numbers lie within (0.01, 0.99), ``(cells,)``.
    """
    centers = grid_centers(spatial_shapes, device)
    sizes = [
        centers.new_full((height * width, 2), PRIOR_BOX_SIZE * 2.0**level)
        for level, (height, width) in enumerate(spatial_shapes)
    ]
    boxes = torch.cat((centers, torch.cat(sizes)), dim=-1)
    is_valid = ((boxes > PROPOSAL_MARGIN) & (boxes < 1 - PROPOSAL_MARGIN)).all(dim=-1)
    logits = torch.log(boxes / (1 - boxes)).masked_fill(~is_valid[:, None], torch.inf)
    return logits, is_valid
