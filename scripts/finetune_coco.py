"""Fine-tune a checkpoint on photographs with boxes and masks in COCO's instances format.

    python scripts/finetune_coco.py --checkpoint model_cards/uniperceiver-v2-tiny \
        --images photos --annotations instances.json --out runs/photos --holdout 40

The file is taken as it is: crowd regions, category ids with gaps, images without annotations, gray and rotated
photographs. What comes out is a folder for ``pipeline("object-detection", model=...)`` that knows the file's
categories, ``metrics.json`` with the numbers before and after, and a page of pictures. ``--limit 8`` learns eight
photographs by heart instead, which shows in minutes whether data and settings are right.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import pipeline

from transformers_upv2 import (
    UniPerceiverV2Config,
    UniPerceiverV2ForInstanceSegmentation,
    UniPerceiverV2ForMultiTask,
    UniPerceiverV2Processor,
    UniPerceiverV2Trainer,
    UniPerceiverV2TrainingArguments,
)
from transformers_upv2.data.augmentation import ColorJitter, Compose, LargeScaleJitter, RandomFlip
from transformers_upv2.data.coco_detection import CocoDetection
from transformers_upv2.data.json_files import read_json
from transformers_upv2.evaluation.detection import DetectionEvaluator, DetectionPredictions
from transformers_upv2.evaluation.drawing import class_colors, draw_detections

PICTURE_SIZE = 512
DRAWN_SCORE = 0.3


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a saved model and processor")
    parser.add_argument("--images", type=Path, required=True, help="folder that the file names start from")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO instances JSON file")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    use = parser.add_mutually_exclusive_group(required=True)
    use.add_argument("--holdout", type=int, help="evaluate on the last N images by id, train on the others")
    use.add_argument("--limit", type=int, help="train and evaluate on the first N images by id")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=256, help="longest edge of an image in pixels")
    parser.add_argument("--num-queries", type=int, default=100, help="regions that are looked at")
    parser.add_argument("--num-proposals", type=int, default=60, help="regions that are named")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--augment", action=argparse.BooleanOptionalAction, help="default: unless --limit is given")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not (options.checkpoint / "config.json").is_file():
        parser.error(f"--checkpoint must be the folder of a saved model with a config.json, got {options.checkpoint}")
    if options.augment is None:
        options.augment = options.limit is None
    return options


def split_images(options: argparse.Namespace) -> tuple[CocoDetection, CocoDetection]:
    """Write the two parts of the annotation file as files of their own and open them.

    Returns:
        The data sets to train and to evaluate on.

    Raises:
        DataError: If the file is missing or malformed.
        ValueError: If there are not as many images as the options ask for.
    """
    CocoDetection(options.annotations, options.images)  # whose errors name the user's own file
    content = read_json(options.annotations)
    images = sorted(content["images"], key=lambda image: image["id"])
    name, number = ("--limit", options.limit) if options.holdout is None else ("--holdout", options.holdout)
    most = len(images) if options.holdout is None else len(images) - 1
    if not 1 <= number <= most:
        raise ValueError(f"`{name}` must be in [1, {most}] with {len(images)} images, got {number}.")
    if options.holdout is None:
        parts = {"training.json": images[:number], "evaluation.json": images[:number]}
    else:
        parts = {"training.json": images[:-number], "evaluation.json": images[-number:]}
    options.out.mkdir(parents=True, exist_ok=True)
    for file, part in parts.items():
        ids = {image["id"] for image in part}
        annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
        (options.out / file).write_text(json.dumps({**content, "images": part, "annotations": annotations}))
    training, evaluation = (CocoDetection(options.out / file, options.images) for file in parts)
    return training, evaluation


def load_checkpoint(
    options: argparse.Namespace, class_names: Sequence[str]
) -> tuple[UniPerceiverV2ForMultiTask, UniPerceiverV2Processor]:
    """Load model and processor and set them to the new names, image size and numbers of regions.

    None of this changes the shape of a weight: names are candidates, and queries come from the image.
    """
    config = UniPerceiverV2Config.from_pretrained(options.checkpoint)
    config.num_proposals = options.num_proposals
    config.proposal_config.num_queries = options.num_queries
    config.proposal_config.dn_number = max(options.num_queries, config.proposal_config.dn_number)
    config.validate_architecture()
    model = UniPerceiverV2ForMultiTask.from_pretrained(options.checkpoint, config=config)
    side = options.image_size
    processor = UniPerceiverV2Processor.from_pretrained(
        options.checkpoint, size={"longest_edge": side}, pad_size={"height": side, "width": side}
    )
    model.set_labels(class_names, processor.tokenizer, label_set="detection")
    return model, processor


def train(
    model: UniPerceiverV2ForMultiTask,
    processor: UniPerceiverV2Processor,
    dataset: CocoDetection,
    options: argparse.Namespace,
) -> list[dict[str, float]]:
    """Train on detection alone and save model and processor.

    Returns:
        The logged losses.
    """
    canvas = (options.image_size, options.image_size)
    transform = Compose([LargeScaleJitter(canvas, scale_range=(0.5, 1.5)), RandomFlip(), ColorJitter()])
    # No padding to a square: in use an image is computed on its own canvas, and the batch's comes nearest to it.
    # Images are not split into micro-batches, where each object of a crowded image would count less.
    image_options: dict[str, Any] = {"pad_size": None, "do_resize": not options.augment}
    arguments = UniPerceiverV2TrainingArguments(
        output_dir=str(options.out),
        max_steps=options.steps,
        batch_sizes={"detection": options.batch_size},
        image_options={"detection": image_options},
        learning_rate=options.learning_rate,
        lr_multipliers={"model.image_encoder.backbone": 0.2},
        adam_beta1=0.9,
        adam_beta2=0.99,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, options.steps // 50),
        logging_steps=max(1, options.steps // 30),
        save_strategy="no",
        report_to=[],
        seed=options.seed,
    )
    trainer = UniPerceiverV2Trainer(
        model=model,
        args=arguments,
        train_dataset={"detection": dataset},
        processing_class=processor,
        transforms={"detection": transform} if options.augment else None,
    )
    trainer.train()
    trainer.save_model()
    return [entry for entry in trainer.state.log_history if "loss/detection" in entry]


def detect_through_pipeline(folder: Path, dataset: CocoDetection, batch_size: int) -> list[list[dict[str, Any]]]:
    """Load the folder as a user would and detect in every image, whatever the score."""
    detector = pipeline("object-detection", model=str(folder))
    images = (dataset[index]["image"] for index in range(len(dataset)))
    return list(detector(images, batch_size=batch_size, threshold=0.0))


def evaluate_pipeline(folder: Path, dataset: CocoDetection) -> dict[str, float]:
    """Measure box AP of what the saved folder's pipeline answers, and what a batch of four changes in it."""
    single, batched = (detect_through_pipeline(folder, dataset, size) for size in (1, 4))
    image_ids = [dataset[index]["image_id"] for index in range(len(dataset))]
    category_ids = dict(zip(dataset.class_names, dataset.category_ids))
    results = [
        {
            "image_id": image_id,
            "category_id": category_ids[found["label"]],
            "score": found["score"],
            "bbox": [box["xmin"], box["ymin"], box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]],
        }
        for image_id, image in zip(image_ids, single, strict=True)
        for found in image
        for box in [found["box"]]
    ]
    predictions = DetectionPredictions(dataset.annotation_file, image_ids, results)
    metrics = DetectionEvaluator(with_masks=False).score(predictions)
    differences = [
        abs(one["score"] - other["score"])
        for image, same_image in zip(single, batched, strict=True)
        for one, other in zip(image, same_image, strict=True)
    ]
    return {"box_ap": metrics["box_ap"], "largest_score_difference_of_batch_4": max(differences)}


def draw_page(
    model: UniPerceiverV2ForMultiTask, processor: UniPerceiverV2Processor, dataset: CocoDetection, path: Path
) -> None:
    """Draw the first eight images, each with its annotations on the left and what was found on the right."""
    view = UniPerceiverV2ForInstanceSegmentation.from_model(model).eval()
    colors = class_colors(dataset.class_names)
    rows = []
    for index in range(min(8, len(dataset))):
        example = dataset[index]
        image = example["image"]
        inputs = processor(images=image, return_tensors="pt").to(model.device)
        with torch.no_grad():
            outputs = view(**inputs)
        found = processor.image_processor.post_process_instances(
            outputs, [(image.height, image.width)], threshold=DRAWN_SCORE
        )[0]
        annotated = [
            _drawable(dataset.class_names[annotation["category_id"]], (left, top, left + width, top + height))
            for annotation in example["annotations"]
            for left, top, width, height in [annotation["bbox"]]
        ]
        detected = [
            _drawable(dataset.class_names[label], box) | {"score": score}
            for label, box, score in zip(*(found[key].tolist() for key in ("labels", "boxes", "scores")))
        ]
        rows.append(
            [
                draw_detections(image, annotated, colors=colors),
                draw_detections(image, detected, list(found["masks"].cpu().numpy()), colors),
            ]
        )
    page = Image.new("RGB", (2 * PICTURE_SIZE, len(rows) * PICTURE_SIZE), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            picture.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
            page.paste(picture, (column * PICTURE_SIZE, row * PICTURE_SIZE))
    page.save(path)


def _drawable(label: str, corners: Sequence[float]) -> dict[str, Any]:
    return {"label": label, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune, evaluate before and after, and write everything to ``--out``."""
    options = parse_arguments(arguments)
    started = time.time()
    training, evaluation = split_images(options)
    model, processor = load_checkpoint(options, training.class_names)
    evaluator = DetectionEvaluator()
    before = evaluator(model, processor, evaluation)
    losses = train(model, processor, training, options)
    trained = time.time()
    after = evaluator(model, processor, evaluation)
    metrics = {
        "arguments": {name: str(value) for name, value in vars(options).items()},
        "images": {"training": len(training), "evaluation": len(evaluation)},
        "minutes": round((trained - started) / 60, 1),
        "before": before,
        "after": after,
        "pipeline": evaluate_pipeline(options.out, evaluation),
        "losses": losses,
    }
    (options.out / "metrics.json").write_text(json.dumps(metrics, indent=2))
    draw_page(model, processor, evaluation, options.out / "page.png")
    for name in ("box_ap", "box_ap50", "mask_ap"):
        if name in after:
            print(f"{name:10} before {before[name]:6.3f}  after {after[name]:6.3f}")
    print(f"{options.out}: {metrics['pipeline']}")


if __name__ == "__main__":
    main()
