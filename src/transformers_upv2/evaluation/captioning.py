"""BLEU, ROUGE-L and CIDEr of generated captions, by the COCO evaluation's own scorers.

The scorers are pycocoevalcap's pure Python classes; the words come from `caption_tokenizer`, so
that no Java is needed.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from transformers_upv2.evaluation.caption_tokenizer import tokenize_caption, tokenize_captions
from transformers_upv2.evaluation.evaluator import (
    TaskEvaluator,
    image_inputs,
    iterate_batches,
    prediction_mode,
)
from transformers_upv2.model.generation_upv2 import UniPerceiverV2ForConditionalGeneration
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2TaskModel


@dataclass(frozen=True)
class CaptionPredictions:
    """The caption of every image and what people wrote about it.

    Attributes:
        captions: The generated caption of each image id.
        references: The true captions of each image id.
    """

    captions: Mapping[Hashable, str]
    references: Mapping[Hashable, Sequence[str]]


@dataclass
class CaptioningEvaluator(TaskEvaluator[CaptionPredictions]):
    """Likeness of generated captions to the reference captions.

    Inputs: examples with ``image``, ``image_id`` and ``captions``.

    Attributes:
        max_new_tokens: Longest caption in tokens.
        num_beams: Width of the beam search; 1 is greedy.
    """

    task_class: type[UniPerceiverV2TaskModel] | None = UniPerceiverV2ForConditionalGeneration
    max_new_tokens: int = 60
    num_beams: int = 1

    def predict(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        dataset: Dataset,
        *,
        batch_size: int = 16,
        progress: bool = True,
    ) -> CaptionPredictions:
        """Generate one caption an image."""
        view = self.view(model)
        captions: dict[Hashable, str] = {}
        references: dict[Hashable, Sequence[str]] = {}
        with prediction_mode(view):
            for examples in iterate_batches(dataset, batch_size, "captioning", progress):
                ids = view.generate(
                    **image_inputs(processor, examples, view),
                    max_new_tokens=self.max_new_tokens,
                    num_beams=self.num_beams,
                    do_sample=False,
                )
                texts = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
                for example, text in zip(examples, texts, strict=True):
                    captions[example["image_id"]] = text.strip()
                    references[example["image_id"]] = example["captions"]
        return CaptionPredictions(captions, references)

    def join(self, parts: Sequence[CaptionPredictions]) -> CaptionPredictions:
        """Put parts together."""
        return CaptionPredictions(
            {key: text for part in parts for key, text in part.captions.items()},
            {key: texts for part in parts for key, texts in part.references.items()},
        )

    def score(self, predictions: CaptionPredictions) -> dict[str, float]:
        """Return ``bleu1`` to ``bleu4``, ``rouge_l`` and ``cider``."""
        return score_captions(predictions.captions, predictions.references)


def score_captions(captions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]) -> dict[str, float]:
    """Compare one caption of each image with its reference captions.

    CIDEr's word weights come from the references given here, as in the COCO evaluation: it is
    comparable on equal image sets only, and is 0 for a single image.

    Args:
        captions: One caption of each image id.
        references: The reference captions of the same image ids, at least one each.

    Returns:
        ``bleu1`` to ``bleu4`` and ``rouge_l`` in [0, 1], ``cider`` in [0, 10].

    Raises:
        ValueError: If the two do not have the same image ids or an image has no reference.
    """
    if captions.keys() != references.keys():
        different = sorted(captions.keys() ^ references.keys(), key=str)
        raise ValueError(
            "`captions` and `references` must have the same image ids, got ids that only one of "
            f"them has: {different[:5]}. Caption every image once."
        )
    for image_id, texts in references.items():
        if not any(text.strip() for text in texts):
            raise ValueError(
                f"`references` must hold at least one caption an image, got none for image "
                f"{image_id!r}. Leave the image out or add a caption."
            )
    true_words = {key: tokenize_captions(texts) for key, texts in references.items()}
    words = {key: [tokenize_caption(captions[key])] for key in true_words}
    bleu, _ = Bleu(4).compute_score(true_words, words, verbose=0)
    rouge, _ = Rouge().compute_score(true_words, words)
    cider, _ = Cider().compute_score(true_words, words)
    scores = {f"bleu{n}": float(value) for n, value in enumerate(bleu, start=1)}
    return scores | {"rouge_l": float(rouge), "cider": float(cider)}
