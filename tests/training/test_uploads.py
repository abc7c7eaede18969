"""What a run uploads: whole checkpoints while it goes on, and a card that says what it did."""

import hashlib

import pytest
from huggingface_hub import ModelCard
from multitask_toys import ToyDataset, make_trainer

from hub_server import LocalHub


class Config:
    """What a card asks of a model's config."""

    _name_or_path = "user/before"


def pushing_trainer(folder, hub_strategy="every_save", **arguments):
    options = {"push_to_hub": True, "hub_model_id": "me/run", "hub_strategy": hub_strategy, "hub_always_push": True}
    trainer = make_trainer(folder, eval_dataset={"a": ToyDataset("a")}, **options | arguments)
    trainer.model.config = Config()
    return trainer


@pytest.mark.parametrize("hub_strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_checkpoints_are_uploaded_whole(tmp_path, hub: LocalHub, hub_strategy):
    trainer = pushing_trainer(tmp_path, hub_strategy)
    trainer.train()
    trainer._finish_current_push()
    assert [job.exception() for job in trainer.push_in_progress.jobs] == [None] * len(trainer.push_in_progress.jobs)
    files = hub.files("me/run")
    assert not [name for name in files if "incomplete" in name]
    assert hashlib.sha256(files["model.safetensors"]).hexdigest() in [
        hashlib.sha256((tmp_path / f"checkpoint-{step}" / "model.safetensors").read_bytes()).hexdigest()
        for step in (4, 8, 12)
    ]
    uploaded = {name.split("/")[0] for name in files if name.endswith("optimizer.pt")}
    expected = {"every_save": set(), "checkpoint": {"last-checkpoint"}}
    assert uploaded == expected.get(hub_strategy, {"checkpoint-4", "checkpoint-8", "checkpoint-12"})
    for folder in uploaded:
        assert f"{folder}/file_sizes.json" in files


def test_the_drafted_card_tells_of_all_tasks(tmp_path, hub: LocalHub):
    trainer = pushing_trainer(tmp_path, "end", batch_sizes={"a": 2, "b": 3, "c": 4}, max_steps=2)
    trainer.train()
    trainer.evaluate()
    trainer.log({"eval_a/score": 0.25, "eval_a/again_score": 0.5})
    trainer.log({"eval_a/score": 0.75})
    trainer.push_to_hub(license="mit")
    text = hub.files("me/run")["README.md"].decode()
    assert "- optimizer: TaskBalancedAdamW" in text
    assert "- b: batch size 3, sampled with probability 0.3" in text
    assert "AdamW_TORCH" not in text.upper().replace("TASKBALANCEDADAMW", "")
    assert "- a/score: 0.75\n- a/again_score: 0.5\n" in text
    assert "a_runtime" not in text
    card = ModelCard(text)
    assert (card.data.license, card.data.base_model) == ("mit", "user/before")


def test_a_draft_is_renewed_and_a_written_card_stays(tmp_path, hub: LocalHub):
    trainer = pushing_trainer(tmp_path, "end", max_steps=2)
    trainer.train()
    trainer.push_to_hub(license="mit")
    trainer.push_to_hub(license="apache-2.0")
    assert ModelCard.load(tmp_path / "README.md").data.license == "apache-2.0"
    (tmp_path / "README.md").write_text("# Mine\n")
    trainer.push_to_hub(license="mit")
    assert hub.files("me/run")["README.md"] == b"# Mine\n"
