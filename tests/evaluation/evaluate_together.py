"""Run as a script on one or more processes: all evaluators on data that is not divisible, with a small real model."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_models import CLASS_NAMES, TEXTS, scatter_weights, tiny_config
from transformers_upv2.data.demo_world import open_world
from transformers_upv2.data.world_tokenizer import train_tokenizer
from transformers_upv2.evaluation.suite import default_evaluators, evaluate_all
from transformers_upv2.model.distributed import leave_together
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor


def main() -> None:
    """Evaluate and write the metrics of this process."""
    world_folder, out = map(Path, sys.argv[1:])
    dist.init_process_group("gloo")
    world = open_world(world_folder)
    tokenizer = train_tokenizer(TEXTS + CLASS_NAMES, vocabulary_size=320, max_length=32)
    torch.manual_seed(0)
    model = scatter_weights(UniPerceiverV2ForMultiTask(tiny_config(text_config={"vocab_size": len(tokenizer)})))
    for task in ("classification", "detection"):
        model.set_labels(world.class_names, tokenizer, label_set=task)
    processor = UniPerceiverV2Processor(UniPerceiverV2ImageProcessor(size={"longest_edge": 64}), tokenizer)
    evaluators = default_evaluators()
    evaluators["captioning"].max_new_tokens = 4
    metrics = evaluate_all(model.eval(), processor, world.val, evaluators, batch_size=8)
    (out / f"{dist.get_world_size()}-{dist.get_rank()}.json").write_text(json.dumps(metrics))
    leave_together()


if __name__ == "__main__":
    main()
