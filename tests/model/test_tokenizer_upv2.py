"""A folder without a tokenizer is an error wherever text becomes ids, and only there."""

import pytest
from transformers import AutoProcessor, AutoTokenizer, RobertaTokenizer, pipeline

from transformers_upv2.data.world_tokenizer import train_tokenizer
from transformers_upv2.model.tokenizer_upv2 import require_fit

TEXT_TASKS = [
    "image-captioning",
    "image-text-to-text",
    "zero-shot-image-classification",
    "zero-shot-object-detection",
    "fill-mask",
    "image-text-retrieval",
]
NO_WORDS = "`tokenizer` must know words, got only its 5 special tokens: there is no `tokenizer.json`"


@pytest.fixture(scope="module")
def wordless_folder(model_folder, tmp_path_factory):
    """What the stock image classification pipeline saves: a model and its image processor."""
    folder = tmp_path_factory.mktemp("wordless")
    pipeline("image-classification", model=str(model_folder)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_a_folder_without_a_tokenizer_is_an_error_where_there_is_text(wordless_folder, task):
    with pytest.raises(ValueError, match=NO_WORDS):
        pipeline(task, model=wordless_folder)


def test_a_folder_without_a_tokenizer_still_sees(wordless_folder, image_folder):
    for task in ("image-classification", "object-detection"):
        pipe = pipeline(task, model=wordless_folder)
        assert pipe.tokenizer is None
        assert isinstance(pipe(str(image_folder / "0.png")), list)


def test_auto_classes_refuse_a_folder_without_a_tokenizer(wordless_folder, model_folder):
    for auto_class in (AutoProcessor, AutoTokenizer):
        with pytest.raises(ValueError, match=NO_WORDS):
            auto_class.from_pretrained(wordless_folder)
    assert type(AutoTokenizer.from_pretrained(model_folder)) is RobertaTokenizer


@pytest.mark.parametrize("vocabulary_size", [300, 340])
def test_labels_need_the_tokenizer_of_the_model(model, roberta_tokenizer, wordless_folder, vocabulary_size):
    require_fit(roberta_tokenizer, model.config)
    text = ["the quick brown fox jumps over the lazy dog and then sleeps under a large oak tree"] * 9
    other = train_tokenizer(text, vocabulary_size=vocabulary_size, max_length=32)
    assert len(other) != len(roberta_tokenizer)
    for tokenizer, message in (
        (RobertaTokenizer.from_pretrained(wordless_folder), NO_WORDS),
        (other, rf"at most {len(roberta_tokenizer)} tokens .*, got {len(other)} tokens and the mask token"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_labels(["hat"], tokenizer, label_set="detection")
        with pytest.raises(ValueError, match=message):
            model.encode_labels(["hat"], tokenizer)
