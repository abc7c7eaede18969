"""Checkpoints hold every weight under a name that a Trainer finds again."""

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from visft_models import config_with

from tiny_models import TEXTS
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.training.arguments import UniPerceiverV2TrainingArguments
from transformers_upv2.training.upv2_trainer import UniPerceiverV2Trainer


@pytest.fixture(scope="module")
def make_trainer(roberta_tokenizer, tmp_path_factory):
    """With Swin, whose weights transformers writes under older names."""
    processor = UniPerceiverV2Processor(UniPerceiverV2ImageProcessor(size={"longest_edge": 64}), roberta_tokenizer)
    folder = tmp_path_factory.mktemp("run")

    def make(seed, steps):
        torch.manual_seed(seed)
        model = UniPerceiverV2ForMultiTask(config_with("swin", len(roberta_tokenizer)))
        args = UniPerceiverV2TrainingArguments(
            output_dir=str(folder), max_steps=steps, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
        )
        datasets = {"language_modeling": Dataset.from_dict({"text": TEXTS})}
        return UniPerceiverV2Trainer(model, args, datasets, processing_class=processor)

    return make


def test_a_resumed_run_has_every_weight_of_the_checkpoint(make_trainer):
    first = make_trainer(seed=0, steps=1)
    first.train()
    second = make_trainer(seed=1, steps=1)
    second.train(resume_from_checkpoint=True)
    loaded = UniPerceiverV2ForMultiTask.from_pretrained(f"{first.args.output_dir}/checkpoint-1")
    for name, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_checkpoint_that_lacks_weights_is_refused(make_trainer):
    trainer = make_trainer(seed=0, steps=1)
    trainer.train()
    file = f"{trainer.args.output_dir}/checkpoint-1/model.safetensors"
    weights = load_file(file)
    weights.pop(next(name for name in weights if "backbone" in name))
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(RuntimeError, match="it lacks 1, such as"):
        make_trainer(seed=0, steps=2).train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-1")
