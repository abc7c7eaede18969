"""Recall of image-text retrieval, in the protocol of COCO and Flickr30k.

Every image has several captions. Text to image: each caption looks for its image. Image to text:
each image looks for any of its captions, so the best ranked of them counts.

Images and texts are encoded once and compared in blocks, so that the 5 000 x 25 000 similarities of COCO are never in
memory together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from transformers_upv2.evaluation.evaluator import (
    TaskEvaluator,
    image_inputs,
    iterate_batches,
    prediction_mode,
    text_inputs,
)
from transformers_upv2.model.modeling_tasks_upv2 import (
    UniPerceiverV2ForImageTextRetrieval,
    UniPerceiverV2TaskModel,
)

PROTOCOLS: dict[str, dict[str, Any]] = {
    "coco_5k": {"captions_per_image": 5},
    "coco_1k": {"captions_per_image": 5, "fold_size": 1000},
    "flickr30k": {"captions_per_image": 5},
}
"""Options of ``RetrievalEvaluator`` for the field's protocols, on Karpathy's test splits with five captions an image:
the 5 000 images of COCO at once, or at once and in five folds, and the 1 000 images of Flickr30k."""


@dataclass(frozen=True)
class RetrievalPredictions:
    """Features of both sides and which text belongs to which image.

    Attributes:
        image_features: ``(images, D)``.
        text_features: ``(texts, D)``.
        image_of_text: Index of the image that each text describes, ``(texts,)`` int64.
    """

    image_features: Tensor
    text_features: Tensor
    image_of_text: Tensor


@dataclass
class RetrievalEvaluator(TaskEvaluator[RetrievalPredictions]):
    """Share of the queries whose match is among the first 1, 5 or 10.

    Inputs: examples with ``image`` and ``captions``.

    Attributes:
        captions_per_image: How many captions of an image take part, the first ones; ``None``
            takes all. With 1, both directions choose among as many items as there are images.
        ranks: The k of recall@k.
        fold_size: Number of images of a fold, if folds are searched as well: recalls are also
            averaged over consecutive folds; images that make up no whole fold are left out there.
        block_size: Number of queries that are compared with all candidates at once; memory grows
            with it, the result does not depend on it.
    """

    task_class: type[UniPerceiverV2TaskModel] | None = UniPerceiverV2ForImageTextRetrieval
    captions_per_image: int | None = None
    ranks: Sequence[int] = (1, 5, 10)
    fold_size: int | None = None
    block_size: int = 64

    def predict(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        dataset: Dataset,
        *,
        batch_size: int = 16,
        progress: bool = True,
    ) -> RetrievalPredictions:
        """Encode all images and captions.

        Raises:
            ValueError: If an example has no caption.
        """
        view = self.view(model)
        image_features: list[Tensor] = []
        texts: list[str] = []
        image_of_text: list[int] = []
        with prediction_mode(view):
            for examples in iterate_batches(dataset, batch_size, "retrieval images", progress):
                inputs = image_inputs(processor, examples, view)
                image_features.append(view.get_image_features(**inputs).pooler_output.float().cpu())
                for example in examples:
                    captions = self._captions(example)
                    image_of_text += [image_of_text[-1] + 1 if image_of_text else 0] * len(captions)
                    texts += captions
            text_features = [
                view.get_text_features(**text_inputs(processor, batch, view)).pooler_output.float().cpu()
                for batch in iterate_batches(texts, batch_size, "retrieval captions", progress)
            ]
        return RetrievalPredictions(torch.cat(image_features), torch.cat(text_features), torch.tensor(image_of_text))

    def join(self, parts: Sequence[RetrievalPredictions]) -> RetrievalPredictions:
        """Put parts together."""
        starts = accumulate((len(part.image_features) for part in parts), initial=0)
        return RetrievalPredictions(
            torch.cat([part.image_features for part in parts]),
            torch.cat([part.text_features for part in parts]),
            torch.cat([part.image_of_text + start for part, start in zip(parts, starts)]),
        )

    def score(self, predictions: RetrievalPredictions) -> dict[str, float]:
        """Return ``text_to_image_r<k>`` and ``image_to_text_r<k>``.

        With folds there are also their means, such as ``text_to_image_r1_folds_of_1000``.

        Raises:
            ValueError: If there are fewer images than in one fold.
        """
        whole = self._score_fold(predictions)
        return whole if self.fold_size is None else whole | self._score_folds(predictions, self.fold_size)

    def _score_folds(self, predictions: RetrievalPredictions, fold_size: int) -> dict[str, float]:
        num_images = len(predictions.image_features)
        if num_images < fold_size:
            raise ValueError(
                f"`dataset` must hold at least `fold_size` = {fold_size} images, got {num_images}. Set a smaller one."
            )
        starts = range(0, num_images - fold_size + 1, fold_size)
        folds = [self._score_fold(select_images(predictions, start, fold_size)) for start in starts]
        return {f"{name}_folds_of_{fold_size}": sum(fold[name] for fold in folds) / len(folds) for name in folds[0]}

    def _score_fold(self, predictions: RetrievalPredictions) -> dict[str, float]:
        images, texts = predictions.image_features, predictions.text_features
        image_ids = torch.arange(len(images))
        best = {
            "text_to_image": rank_matches(texts, images, predictions.image_of_text, image_ids, self.block_size),
            "image_to_text": rank_matches(images, texts, image_ids, predictions.image_of_text, self.block_size),
        }
        return {
            f"{direction}_r{k}": (ranks < k).float().mean().item()
            for direction, ranks in best.items()
            for k in self.ranks
        }

    def _captions(self, example: dict) -> list[str]:
        captions = list(example["captions"])[: self.captions_per_image]
        if not captions:
            raise ValueError(
                "Every example of `dataset` must have at least one caption, got none for image "
                f"{example.get('image_id')!r}. Leave the image out or add a caption."
            )
        return captions


def select_images(predictions: RetrievalPredictions, start: int, number: int) -> RetrievalPredictions:
    """Return `number` images from the index `start` on, with their texts."""
    chosen = (predictions.image_of_text >= start) & (predictions.image_of_text < start + number)
    return RetrievalPredictions(
        predictions.image_features[start : start + number],
        predictions.text_features[chosen],
        predictions.image_of_text[chosen] - start,
    )


def rank_matches(
    queries: Tensor, candidates: Tensor, query_ids: Tensor, candidate_ids: Tensor, block_size: int
) -> Tensor:
    """Find how many wrong candidates stand before the best right one of each query.

    Not stated in the paper, chosen here: a wrong candidate that is exactly as similar counts as
    standing before, so a model whose features are all the same finds nothing.

    A similarity that is not a number is never found.

    Args:
        queries: ``(queries, D)``.
        candidates: ``(candidates, D)``.
        query_ids: What each query shows, ``(queries,)``.
        candidate_ids: What each candidate shows, ``(candidates,)``; equal ids match.
        block_size: Number of queries compared at once.

    Returns:
        The rank of the best match, 0 is first, ``(queries,)`` int64; the largest integer where no match is found.
    """
    # what lives on is allocated before the large blocks that come and go, or the heap between them is never given back
    ranks = torch.empty(len(queries), dtype=torch.int64)
    parts = zip(queries.split(block_size), query_ids.split(block_size), ranks.split(block_size), strict=True)
    for block, ids, part in parts:
        similarity = block @ candidates.T  # (block, candidates)
        similarity.masked_fill_(similarity.isnan(), -torch.inf)
        is_match = ids[:, None] == candidate_ids
        best_match = similarity.masked_fill(~is_match, -torch.inf).amax(dim=1, keepdim=True)
        torch.sum((similarity >= best_match) & ~is_match, dim=1, out=part)
        part.masked_fill_(best_match[:, 0] == -torch.inf, torch.iinfo(torch.int64).max)
    return ranks
