"""Deployment: every choice of tasks answers as before, is saved and loaded, and refuses the tasks it gave up."""

import pytest
import torch
from torch import Tensor

from transformers_upv2.model import conditional_moe
from transformers_upv2.model.conditional_moe import TokenGroup
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.tasks import ROUTES, TASKS, Route, routes_of


@torch.no_grad()
def losses(model, batches, names) -> dict[str, Tensor]:
    found = {}
    for name in names:
        torch.manual_seed(0)  # noise and points of the proposal network's losses
        found[name] = model(name, **batches[name]).loss
    return found


@pytest.mark.parametrize("tasks", [None, ["captioning"], ["language_modeling"], ["detection", "retrieval"]])
def test_a_merged_model_answers_as_before_and_after_loading(model, batches, tasks, tmp_path):
    names = list(TASKS) if tasks is None else tasks
    before = losses(model, batches, names)
    model.merge_experts(tasks)
    after = losses(model, batches, names)
    model.save_pretrained(tmp_path)
    loaded = UniPerceiverV2ForMultiTask.from_pretrained(tmp_path).eval()
    for name in names:
        torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(losses(loaded, batches, [name])[name], after[name])
    routes = routes_of(tasks)
    assert loaded.config.decoder_config.merged_routes == routes
    assert loaded.model.decoder.layers[0].feed_forward.up_projection.weight.shape[0] == len(routes)
    assert not [key for key in loaded.state_dict() if ".gate." in key]
    for name, task in TASKS.items():
        if not set(task.routes) <= set(routes):
            with pytest.raises(ValueError, match=rf"cannot use .*'{name}'"):
                losses(loaded, batches, [name])


def test_a_merged_model_can_give_up_more_routes_but_gets_none_back(model, batches):
    before = losses(model, batches, ["retrieval"])["retrieval"]
    model.merge_experts(["retrieval", "language_modeling"])
    model.merge_experts(["retrieval"])
    torch.testing.assert_close(losses(model, batches, ["retrieval"])["retrieval"], before, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"merged for the routes \['image', 'label'\] and cannot use 'text'"):
        model.merge_experts(["language_modeling"])


def test_a_merged_network_uses_its_weights_without_a_copy(model):
    model.merge_experts()
    network = model.model.decoder.layers[0].feed_forward
    for index, route in enumerate(network.merged_routes):
        for linear, (weight, bias) in zip(
            (network.up_projection, network.down_projection), network.dense_layers(route)
        ):
            assert weight.data_ptr() == linear.weight[index].data_ptr()
            assert bias.data_ptr() == linear.bias[index].data_ptr()


def test_a_route_is_nothing_but_its_attributes(model, monkeypatch):
    """Another name with the same bits is the same network; another bit is another one."""
    network = model.model.decoder.layers[0].feed_forward
    states = torch.randn(2, 3, 32)
    twin = Route("twin", ROUTES["text"].attributes)
    other = Route("other", ROUTES["text"].attributes | {"attention_is_causal"})
    monkeypatch.setattr(conditional_moe, "ROUTES", ROUTES | {"twin": twin, "other": other})
    outputs = {name: network(states, [TokenGroup(name, 3)]) for name in ("text", "twin", "other")}
    assert torch.equal(outputs["twin"], outputs["text"])
    assert not torch.allclose(outputs["other"], outputs["text"])


def test_routes_of_tasks_are_listed_once_in_the_order_of_the_tasks():
    assert routes_of(["retrieval", "captioning", "detection"]) == [
        "image",
        "label",
        "caption_image",
        "caption_text",
        "vocabulary",
    ]
    assert set(routes_of()) == set(ROUTES)
    with pytest.raises(ValueError, match="`task` must be one of"):
        routes_of(["painting"])
