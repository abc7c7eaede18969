"""The card: everything that a run states is in it, its metadata is the Hub's, numbers are the given ones."""

import dataclasses

import pytest
from huggingface_hub import ModelCard

from transformers_upv2.model_card import CardFacts, fill_card

DATASETS = ("detection", "classification", "retrieval/flickr30k")
METRICS = {"detection/box_ap": 0.43211, "detection/mask_ap": -1, "classification/top1": 0.9, "other/thing": 1.0}


@pytest.fixture
def facts() -> CardFacts:
    given = {field.name: f"what {field.name} says" for field in dataclasses.fields(CardFacts)}
    return CardFacts(**{**given, "seed": 7, "test_data": dict.fromkeys(DATASETS, ("photos", "Photos (test)"))})


def test_every_fact_is_in_the_card(facts: CardFacts) -> None:
    card = fill_card(facts, METRICS)
    stated = dataclasses.asdict(facts)
    readable = stated.pop("test_data")["detection"][1]
    assert readable in card
    for value in stated.values():
        assert str(value) in card
    assert "$" not in card


def test_metadata_holds_the_main_metrics_as_model_index(facts: CardFacts) -> None:
    data = ModelCard(fill_card(facts, METRICS)).data
    assert data.license == "apache-2.0"
    assert data.library_name == "transformers"
    assert data.model_name == facts.name
    results = {(result.task_type, result.metric_type): result.metric_value for result in data.eval_results}
    assert results == {("object-detection", "box_ap"): 0.4321, ("image-classification", "top1"): 0.9}
    assert {(result.dataset_type, result.dataset_name) for result in data.eval_results} == {
        ("photos", "Photos (test)")
    }
    assert data.pipeline_tag == "object-detection"


def test_table_stands_the_numbers_side_by_side(facts: CardFacts) -> None:
    card = fill_card(facts, METRICS, {"detection/box_ap": 0.01}, {"classification/top1": 1.0})
    assert "| detection/box_ap | 0.010 | 0.432 | \u2013 |" in card
    assert "| detection/mask_ap | \u2013 | \u2013 | \u2013 |" in card
    assert "| classification/top1 | \u2013 | 0.900 | 1.000 |" in card
    assert "other/thing" not in card


def test_columns_that_were_not_measured_are_left_out(facts: CardFacts) -> None:
    card = fill_card(facts, METRICS)
    assert "| metric | this checkpoint |\n|---|---|\n| detection/box_ap | 0.432 |" in card
    assert "Blind" not in card
    assert "Ceiling" not in card


def test_main_metrics_of_several_datasets_of_a_task(facts: CardFacts) -> None:
    card = fill_card(facts, {"retrieval/flickr30k/text_to_image_r1": 0.5, "retrieval/flickr30k/text_to_image_r5": 0.7})
    assert "| retrieval/flickr30k/text_to_image_r1 | 0.500 |" in card
    assert "text_to_image_r5" not in card
    assert ModelCard(card).data.eval_results[0].dataset_name == "Photos (test)"


def test_the_code_shows_the_example_or_any_photograph(facts: CardFacts) -> None:
    shown = fill_card(dataclasses.replace(facts, example="star.jpg"), METRICS)
    assert 'print(detector(cached_file(folder, "star.jpg")))' in shown
    assert "import cached_file" in shown
    bare = fill_card(dataclasses.replace(facts, example=None), METRICS)
    assert 'print(detector("photo.jpg"))' in bare
    assert "cached_file" not in bare


def test_a_card_without_numbers_is_refused(facts: CardFacts) -> None:
    with pytest.raises(ValueError, match=r"`metrics` must hold at least one of .* got \['other/thing'\]"):
        fill_card(facts, {"other/thing": 1.0})
