"""What a metric is worth: blind baselines below it and ceilings above it.

Every baseline is a set of predictions that was made without the model, scored by the evaluator of
its task. The training split may be used, the answers of the test split may not.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from transformers_upv2.evaluation.caption_tokenizer import tokenize_caption, tokenize_captions
from transformers_upv2.evaluation.captioning import CaptionPredictions, score_captions
from transformers_upv2.evaluation.classification import ClassificationPredictions
from transformers_upv2.evaluation.detection import CocoResult, DetectionPredictions
from transformers_upv2.evaluation.language_modeling import MaskedWordPredictions, TokenIds
from transformers_upv2.evaluation.retrieval import RetrievalPredictions

Phrase = tuple[str, ...]


def color_histogram(image: Image.Image, bins: int = 8) -> np.ndarray:
    """Count the colors of an RGB image.

    Args:
        image: The image.
        bins: Number of bins of each channel.

    Returns:
        The square roots of the shares, so that a dot product compares two histograms (the
        Bhattacharyya coefficient, 1 for equal ones), ``(bins ** 3,)`` float32.
    """
    channels = np.asarray(image.convert("RGB"), dtype=np.int64).reshape(-1, 3) * bins // 256
    index = channels @ np.array([bins * bins, bins, 1])
    counts = np.bincount(index, minlength=bins**3)
    return np.sqrt(counts / counts.sum()).astype(np.float32)


def classify_by_color(dataset: Dataset, train_dataset: Dataset) -> ClassificationPredictions:
    """Give each image the class of the training image with the most similar colors."""
    histograms, labels = _read_colors(dataset, "label")
    train_histograms, train_labels = _read_colors(train_dataset, "label")
    similarity = histograms @ train_histograms.T  # (examples, train_examples)
    num_classes = max(*labels, *train_labels) + 1
    logits = torch.zeros(len(labels), num_classes).scatter_reduce(
        1, torch.tensor(train_labels).expand_as(similarity), similarity, "amax"
    )
    return ClassificationPredictions(logits, torch.tensor(labels))


def retrieve_by_color(
    dataset: Dataset, train_dataset: Dataset, captions_per_image: int | None = None
) -> RetrievalPredictions:
    """Describe each image by the captions of the training image with the most similar colors.

    Images and captions are compared as bags of words, weighted by their rarity in the training
    captions.
    """
    histograms, captions = _read_colors(dataset, "captions")
    train_histograms, train_captions = _read_colors(train_dataset, "captions")
    neighbors = (histograms @ train_histograms.T).argmax(dim=1).tolist()
    captions = [texts[:captions_per_image] for texts in captions]
    image_of_text = [index for index, texts in enumerate(captions) for _ in texts]
    word_weights = _word_weights(train_captions)
    return RetrievalPredictions(
        image_features=_bags_of_words([train_captions[i] for i in neighbors], word_weights),
        text_features=_bags_of_words([[text] for texts in captions for text in texts], word_weights),
        image_of_text=torch.tensor(image_of_text),
    )


def shuffle_class_names(
    predictions: DetectionPredictions, category_ids: Sequence[int], seed: int = 0
) -> DetectionPredictions:
    """Keep where every object is and give each class the name of another.

    Args:
        predictions: A detector's predictions.
        category_ids: All category ids, at least two.
        seed: Chooses the exchange.

    Returns:
        The same boxes, masks and scores; no class keeps its name.

    Raises:
        ValueError: If there is only one class.
    """
    if len(category_ids) < 2:
        raise ValueError(f"`category_ids` must hold at least two classes to exchange, got {len(category_ids)}.")
    order = np.random.default_rng(seed).permutation(category_ids).tolist()
    new_ids = dict(zip(order, order[1:] + order[:1]))  # one cycle through all classes

    def exchange(results: Sequence[CocoResult]) -> list[CocoResult]:
        return [result | {"category_id": new_ids[result["category_id"]]} for result in results]

    masks = predictions.masks
    return replace(
        predictions,
        boxes=exchange(predictions.boxes),
        masks=None if masks is None else exchange(masks),
    )


def caption_without_image(
    references: Mapping[Hashable, Sequence[str]], train_captions: Sequence[Sequence[str]]
) -> CaptionPredictions:
    """Say the same about every image: the most typical training caption.

    Args:
        references: The captions of the images that are asked about.
        train_captions: The captions of each training image.
    """
    return CaptionPredictions(dict.fromkeys(references, consensus_caption(train_captions)), references)


def consensus_caption(train_captions: Sequence[Sequence[str]]) -> str:
    """Find the training caption that is most like all others.

    Likeness is the cosine of CIDEr: phrases of one to four words, weighted by their rarity, each
    length by itself (https://arxiv.org/abs/1411.5726, without the refinements of CIDEr-D).

    Args:
        train_captions: The captions of each training image.
    """
    counts = [[_count_phrases(text) for text in texts] for texts in train_captions]
    images_with = Counter(phrase for image in counts for phrase in set().union(*image))
    rarity = {phrase: np.log(len(counts) / count) for phrase, count in images_with.items()}
    vectors = [_weigh_phrases(phrases, rarity) for image in counts for phrases in image]
    total: defaultdict[Phrase, float] = defaultdict(float)
    for vector in vectors:
        for phrase, weight in vector.items():
            total[phrase] += weight
    likeness = [sum(weight * total[phrase] for phrase, weight in v.items()) for v in vectors]
    captions = [text for texts in train_captions for text in texts]
    return captions[int(np.argmax(likeness))]


def caption_ceiling(references: Mapping[Hashable, Sequence[str]]) -> dict[str, float]:
    """Score people against people: one caption of each image against its other captions.

    Every caption takes the part of the answer once; the scores are averaged.

    Args:
        references: The captions of each image, at least two.

    Returns:
        The same metrics as the captioning evaluator's.

    Raises:
        ValueError: If an image has one caption only.
    """
    rounds = min(len(texts) for texts in references.values())
    if rounds < 2:
        lonely = [key for key, texts in references.items() if len(texts) < 2]
        raise ValueError(
            "`references` must hold at least two captions an image, got fewer for "
            f"{lonely[:5]}. Leave these images out."
        )
    scores = [
        score_captions(
            {key: texts[turn] for key, texts in references.items()},
            {key: [*texts[:turn], *texts[turn + 1 :]] for key, texts in references.items()},
        )
        for turn in range(rounds)
    ]
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def guess_most_frequent_word(words: Sequence[TokenIds], train_words: Sequence[TokenIds]) -> MaskedWordPredictions:
    """Answer every masked word with the most frequent word of the training text.

    Args:
        words: The words that are asked for.
        train_words: The words of the training text.
    """
    [(most_frequent, _)] = Counter(train_words).most_common(1)
    return MaskedWordPredictions(words, [most_frequent] * len(words))


def _count_phrases(caption: str) -> Counter[Phrase]:
    words = tokenize_caption(caption).split()
    starts = range(len(words))
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in starts if i + n <= len(words))


def _weigh_phrases(counts: Counter[Phrase], rarity: Mapping[Phrase, float]) -> dict[Phrase, float]:
    """Return the weight of each phrase; the weights of all phrases of one length have norm one."""
    weights = {phrase: count * rarity[phrase] for phrase, count in counts.items()}
    squares: defaultdict[int, float] = defaultdict(float)
    for phrase, weight in weights.items():
        squares[len(phrase)] += weight**2
    return {phrase: w / squares[len(phrase)] ** 0.5 for phrase, w in weights.items() if w > 0}


def _read_colors(dataset: Dataset, key: str) -> tuple[Tensor, list[Any]]:
    """Return the color histograms ``(examples, bins ** 3)`` and the values of `key`."""
    histograms, values = [], []
    for index in range(len(dataset)):  # type: ignore[arg-type]
        example = dataset[index]
        histograms.append(torch.from_numpy(color_histogram(example["image"])))
        values.append(example[key])
    return torch.stack(histograms), values


def _word_weights(captions: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the inverse document frequency of every word, an image being a document."""
    counts = Counter(word for texts in captions for word in _words(texts))
    return {word: float(np.log(len(captions) / count)) for word, count in counts.items()}


def _bags_of_words(captions: Sequence[Sequence[str]], weights: Mapping[str, float]) -> Tensor:
    """Return normalized weighted bags of words, ``(items, words)``."""
    columns = {word: column for column, word in enumerate(weights)}
    bags = torch.zeros(len(captions), len(columns))
    for row, texts in enumerate(captions):
        for word in _words(texts) & columns.keys():
            bags[row, columns[word]] = weights[word]
    return torch.nn.functional.normalize(bags, dim=1)


def _words(texts: Sequence[str]) -> set[str]:
    return {word for text in tokenize_captions(texts) for word in text.split()}
