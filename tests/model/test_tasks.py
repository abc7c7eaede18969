"""The table of tasks holds together."""

import pytest

from transformers_upv2.model.task_forward import TASK_FORWARD
from transformers_upv2.model.tasks import ATTRIBUTE_BITS, ROUTES, TASKS, TEMPERATURE_FAMILIES, get_task


def test_routes_are_told_apart_by_their_bits_and_all_are_used():
    assert len({route.bits for route in ROUTES.values()}) == len(ROUTES) == 6
    assert {name for task in TASKS.values() for name in task.routes} == set(ROUTES)
    for route in ROUTES.values():
        assert route.attributes <= set(ATTRIBUTE_BITS)
        assert len(route.bits) == 8
        assert sum(route.bits) == len(route.attributes)


def test_bits_follow_the_order_of_their_names():
    assert ROUTES["text"].bits == (0, 1, 0, 1, 0, 1, 0, 0)
    assert ROUTES["caption_text"].bits[ATTRIBUTE_BITS.index("attention_is_causal")] == 1


def test_images_of_three_tasks_share_a_route_and_captioning_has_its_own():
    shared = {TASKS[name].input_routes for name in ("classification", "detection", "retrieval")}
    assert shared == {("image",)}
    assert "image" not in TASKS["captioning"].routes


def test_every_task_has_a_forward_function_and_a_known_temperature():
    assert set(TASK_FORWARD) == set(TASKS)
    assert {task.temperature for task in TASKS.values()} == set(TEMPERATURE_FAMILIES)


def test_unknown_task_is_an_error():
    with pytest.raises(ValueError, match=r"`task` must be one of .*'detection'.* got 'detect'"):
        get_task("detect")
