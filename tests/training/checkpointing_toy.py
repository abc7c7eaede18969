"""Two processes train the whole tiny model on every task, with and without gradient checkpointing."""

import os
import sys
from functools import partial

import torch
import torch.distributed as dist

from tiny_models import CLASS_NAMES, TEXTS, scatter_weights, task_batches, tiny_config
from transformers_upv2.data.world_tokenizer import train_tokenizer
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.training.arguments import MultiTaskTrainingArguments
from transformers_upv2.training.trainer import MultiTaskTrainer


def first_batch(batch, examples):
    """The same batch, whatever was drawn."""
    return dict(batch)


def train(folder, **arguments):
    tokenizer = train_tokenizer(TEXTS + CLASS_NAMES, vocabulary_size=320, max_length=32)
    torch.manual_seed(0)
    model = scatter_weights(UniPerceiverV2ForMultiTask(tiny_config(text_config={"vocab_size": len(tokenizer)})))
    model.set_labels(CLASS_NAMES, tokenizer, label_set="classification")
    model.set_labels(CLASS_NAMES, tokenizer, label_set="detection")
    batches = task_batches(tokenizer)
    options = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    args = MultiTaskTrainingArguments(
        output_dir=folder, max_steps=10, learning_rate=1e-4, ddp_backend="gloo", **options, **arguments
    )
    collators = {task: partial(first_batch, batch) for task, batch in batches.items()}
    trainer = MultiTaskTrainer(model, args, {task: range(8) for task in batches}, data_collators=collators)
    trainer.train()
    statistics = trainer.optimizer.param_groups[0]["task_statistics"]
    assert min(counts["steps"] for counts in statistics.values()) >= 1
    return model.state_dict()


def main():
    plain, saving = (train(sys.argv[1], gradient_checkpointing=saves) for saves in (False, True))
    for name, value in plain.items():
        torch.testing.assert_close(saving[name], value, rtol=1e-3, atol=1e-5, msg=name)
    dist.barrier()


if __name__ == "__main__":
    main()
    os._exit(0)  # gloo's threads, if one frees a tensor while Python ends, abort the process
