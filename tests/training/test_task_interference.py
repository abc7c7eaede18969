"""Cosines between the gradients of tasks: known ones, and nothing left behind."""

import pytest
import torch
from multitask_toys import ToyDataset, ToyModel
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from transformers_upv2.training.task_interference import task_interference

DIRECTIONS = {
    "one": [1.0, 0.0, 0.0],
    "same, louder": [5.0, 0.0, 0.0],
    "opposite": [-2.0, 0.0, 0.0],
    "orthogonal": [0.0, 3.0, 0.0],
    "half": [0.5, 0.75**0.5, 0.0],
    "nothing": [0.0, 0.0, 0.0],
}


class Linear(nn.Module):
    """Its gradient is what it is given; a second parameter belongs to no task."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, direction):
        return {"loss": self.weight @ direction}


def known_cosines():
    return task_interference(Linear(), {t: {"direction": torch.tensor(d)} for t, d in DIRECTIONS.items()})


@pytest.mark.parametrize(
    ("task", "other", "cosine"),
    [
        ("one", "one", 1.0),
        ("one", "same, louder", 1.0),
        ("one", "opposite", -1.0),
        ("one", "orthogonal", 0.0),
        ("one", "half", 0.5),
        ("orthogonal", "half", 0.75**0.5),
        ("nothing", "one", 0.0),
        ("nothing", "nothing", 0.0),
    ],
)
def test_known_cosines(task, other, cosine):
    result = known_cosines()
    assert result.between(task, other) == pytest.approx(cosine, abs=1e-7)
    assert result.between(other, task) == result.between(task, other)
    assert result.norms.tolist() == pytest.approx([1.0, 5.0, 2.0, 3.0, 1.0, 0.0])


def toy_batch(task):
    data = ToyDataset(task)
    return {"x": data.inputs, "y": data.targets, "index": torch.arange(50)}


def toy_batches(*tasks):
    """Every task has the data of the first one."""
    return {task: toy_batch("a") for task in tasks}


class Renamed(ToyModel):
    """Task "twin" is task "a" under another name."""

    def forward(self, task, x, y, index, step_seed=0):
        return super().forward({"twin": "a"}.get(task, task), x, y, index, step_seed)


def test_identical_tasks_agree_though_dropout_is_on():
    model = Renamed(dropout=0.5).train()
    result = task_interference(model, toy_batches("a", "twin", "b"))
    assert result.between("a", "twin") == pytest.approx(1.0, abs=1e-12)
    assert abs(result.between("a", "b")) < 0.999


def test_a_helpful_task_lowers_the_others_loss():
    """The cosine predicts what a short step on one task does to the other's loss."""
    model = ToyModel(dropout=0.0)
    batches = {task: toy_batch(task) for task in "abc"}
    result = task_interference(model, batches)
    for number, task in enumerate("abc"):
        for other in "abc":
            twin = ToyModel(dropout=0.0)
            before = twin(task, **batches[task])["loss"].item()
            twin(other, **batches[other])["loss"].backward()
            length = sum(p.grad.square().sum() for p in twin.parameters() if p.grad is not None).sqrt()
            with torch.no_grad():
                for p in twin.parameters():
                    p -= 0 if p.grad is None else 1e-3 * p.grad / length
            change = twin(task, **batches[task])["loss"].item() - before
            expected = -1e-3 * result.norms[number].item() * result.between(task, other)
            assert change == pytest.approx(expected, abs=5e-5)


def test_weights_gradients_and_generator_are_left_alone():
    model = ToyModel(dropout=0.5)
    model.trunk.weight.grad = torch.ones_like(model.trunk.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    task_interference(model, toy_batches("a", "b"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.trunk.weight.grad, torch.ones_like(model.trunk.weight))
    assert model.heads["a"].weight.grad is None


def test_stock_models_know_no_task():
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    batch = {"input_ids": torch.arange(5, 13)[:, None], "labels": torch.arange(8) % 2}
    flipped = batch | {"labels": 1 - batch["labels"]}
    result = task_interference(BertForSequenceClassification(config).eval(), {"right": batch, "wrong": flipped})
    assert result.between("right", "wrong") < -0.9


def test_it_prints_as_a_table():
    lines = str(known_cosines()).splitlines()
    assert len(lines) == 1 + len(DIRECTIONS)
    assert lines[3].split()[:3] == ["opposite", "-1.000", "-1.000"]
    assert len({len(line) for line in lines}) == 1


def test_bad_batches_are_named():
    with pytest.raises(ValueError, match="`batches` must hold a batch of every task"):
        task_interference(Linear(), {})
    with pytest.raises(ValueError, match="must be finite, got nan for 'a'"):
        task_interference(Linear(), {"a": {"direction": torch.full((3,), torch.nan)}})
    frozen = Linear().requires_grad_(False)
    with pytest.raises(ValueError, match="loss of task 'a' must depend on a trainable parameter"):
        task_interference(frozen, {"a": {"direction": torch.ones(3)}})
