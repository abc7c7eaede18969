"""Models that know nothing of this library: several stock models in one module, and models under PEFT."""

import pytest
import torch
from multitask_toys import ToyModel, make_trainer, same_weights
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from transformers_upv2.training.model_arguments import extra_arguments
from transformers_upv2.training.task_interference import task_interference

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


class Strict(nn.Module):
    """Takes what it names and nothing else, as most models do."""

    def __init__(self, model, *names):
        super().__init__()
        self.model = model
        self.names = set(names)

    def forward(self, **batch):
        assert set(batch) == self.names
        return self.model(**batch)


class Several(nn.Module):
    """A stock model for every task."""

    def __init__(self):
        super().__init__()
        bert = BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=8, **SIZES))
        vit = ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **SIZES))
        self.models = nn.ModuleDict(
            {"text": Strict(bert, "input_ids", "labels"), "image": Strict(vit, "pixel_values", "labels")}
        )

    def forward(self, task, **batch):
        return self.models[task](**batch)


def several_datasets():
    texts = [{"input_ids": torch.full((4,), 5 + i % 2), "labels": i % 2} for i in range(32)]
    images = [{"pixel_values": torch.full((3, 32, 32), float(i % 2)), "labels": i % 2} for i in range(32)]
    return {"text": texts, "image": images}


def test_a_wrapper_hands_each_model_its_batch_and_nothing_else(tmp_path):
    torch.manual_seed(0)
    options = {"sampling_probabilities": {"text": 0.5, "image": 0.5}, "save_strategy": "no"}
    trainer = make_trainer(tmp_path, Several(), several_datasets(), max_steps=40, **options)
    trainer.train()
    for task in ("text", "image"):
        losses = [row[f"loss/{task}"] for row in trainer.state.log_history if f"loss/{task}" in row]
        assert losses[-1] < 0.7 * losses[0]
    batches = {task: torch.utils.data.default_collate(rows[:4]) for task, rows in several_datasets().items()}
    assert task_interference(trainer.model, batches).between("text", "image") == 0.0


def test_a_model_under_peft_trains_and_resumes(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted():
        torch.manual_seed(0)
        return peft.get_peft_model(ToyModel(), peft.LoraConfig(target_modules=["trunk"], r=2))

    assert extra_arguments(adapted()) == {"task", "step_seed"}
    whole = make_trainer(tmp_path, adapted())
    whole.train()
    start = adapted().state_dict()
    moved = {name for name, value in whole.model.state_dict().items() if not torch.equal(value, start[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    resumed = make_trainer(tmp_path, adapted())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert same_weights(whole.model.state_dict(), resumed.model.state_dict())
