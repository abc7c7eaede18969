"""A tiny student, a tiny teacher with another backbone, and pictures with boxes; as a script, one of two processes."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from tiny_models import CLASS_NAMES, TEXTS, scatter_weights, tiny_config
from transformers_upv2.data.world_tokenizer import train_tokenizer
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.training.arguments import UniPerceiverV2TrainingArguments
from transformers_upv2.training.distillation import DistillationTrainer

TEACHER = {"backbone_config": {"backbone": "test_resnet"}}
WIDE_TEACHER = TEACHER | {"proposal_config": {"hidden_size": 48}, "decoder_config": {"hidden_size": 48}}


class Pictures(Dataset):
    """Noise with two boxes and noise with none, all of one size, which is no multiple of 32."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        boxes = [[4 + index, 6, 20, 30], [30, 10, 24, 16]] if index % 2 else []
        annotations = [{"bbox": box, "category_id": k, "area": box[2] * box[3]} for k, box in enumerate(boxes)]
        return {"image": Image.fromarray(pixels), "image_id": index, "annotations": annotations}


class Texts(Dataset):
    def __len__(self):
        return len(TEXTS)

    def __getitem__(self, index):
        return {"text": TEXTS[index]}


def make_processor():
    tokenizer = train_tokenizer(TEXTS + CLASS_NAMES, vocabulary_size=320, max_length=32)
    return UniPerceiverV2Processor(UniPerceiverV2ImageProcessor(size={"longest_edge": 64}), tokenizer)


def make_model(processor, **overrides):
    torch.manual_seed(len(overrides))
    config = tiny_config(**({"text_config": {"vocab_size": len(processor.tokenizer)}} | overrides))
    model = scatter_weights(UniPerceiverV2ForMultiTask(config))
    for label_set in ("classification", "detection"):
        model.set_labels(CLASS_NAMES, processor.tokenizer, label_set=label_set)
    return model


def make_trainer(folder, processor, teacher=None, model=None, fgd=None, datasets=None, **arguments):
    defaults = {
        "max_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
    }
    return DistillationTrainer(
        model=model or make_model(processor),
        teacher=teacher or make_model(processor, **WIDE_TEACHER),
        fgd=fgd,
        args=UniPerceiverV2TrainingArguments(output_dir=str(folder), **(defaults | arguments)),
        train_dataset=datasets or {"detection": Pictures()},
        processing_class=processor,
    )


def main():
    folder = Path(sys.argv[1])
    trainer = make_trainer(folder, make_processor(), ddp_backend="gloo", gradient_accumulation_steps=2)
    trainer.train()
    weights = {"losses": trainer.fgd_losses.state_dict(), "student": trainer.model.state_dict()}
    torch.save(weights, folder / f"result-{trainer.args.process_index}.pt")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads, if one frees a tensor while Python ends, abort the process


if __name__ == "__main__":
    main()
