"""Verbs that ask a model: `predict` with its short forms `classify`, `segment` and `caption`, and `retrieve`."""

import argparse
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers_upv2.cli.common import (
    Verbs,
    add_json_option,
    add_model_option,
    add_verb,
    check_model,
    index_file,
    names,
    positive,
    print_json,
    print_table,
    probability,
    quiet_libraries,
)

Answer = dict[str, Any]
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Question:
    """One task of `upv2 predict`.

    Args:
        pipeline: The pipeline that answers.
        call: What the pipeline is called with, from the command line's options.
        header: Columns of the table.
        row: One answer as a row of the table.
        has_labels: Whether the answers are chosen among labels.
        is_drawn: Whether the answers have a place in the image.
    """

    pipeline: str
    call: Callable[[argparse.Namespace], dict[str, Any]]
    header: tuple[str, ...]
    row: Callable[[Answer], Sequence[Any]]
    has_labels: bool = True
    is_drawn: bool = False


def _box_row(answer: Answer) -> Sequence[Any]:
    return answer["label"], answer["score"], *(answer["box"][side] for side in ("xmin", "ymin", "xmax", "ymax"))


def _mask_row(answer: Answer) -> Sequence[Any]:
    return answer["label"], answer["score"], sum(answer["mask"].histogram()[1:])


QUESTIONS = {
    "detection": Question(
        "object-detection",
        call=lambda options: {"threshold": options.threshold},
        header=("label", "score", "xmin", "ymin", "xmax", "ymax"),
        row=_box_row,
        is_drawn=True,
    ),
    "segmentation": Question(
        "image-segmentation",
        call=lambda options: {"threshold": options.threshold},
        header=("label", "score", "pixels"),
        row=_mask_row,
        is_drawn=True,
    ),
    "classification": Question(
        "image-classification",
        call=lambda options: {"top_k": options.top_k},
        header=("label", "score"),
        row=lambda answer: (answer["label"], answer["score"]),
    ),
    "captioning": Question(
        "image-captioning",
        call=lambda options: {
            "prompt": options.prompt,
            "generate_kwargs": {"num_beams": options.num_beams, "max_new_tokens": options.max_new_tokens},
        },
        header=("caption",),
        row=lambda answer: (answer["generated_text"],),
        has_labels=False,
    ),
}


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this file."""
    parser = add_verb(
        verbs,
        "predict",
        lambda options: predict(options, options.task),
        "ask a model about images",
        [
            'upv2 predict photo.jpg --task detection --labels "cat, sofa"',
            "upv2 predict photos/*.jpg --task segmentation --out drawn",
            "upv2 predict photo.jpg --task captioning --json",
        ],
    )
    _add_images(parser)
    parser.add_argument("--task", choices=QUESTIONS, required=True, help="what to ask")
    for add_options in (_add_labels, _add_drawing, _add_ranking, _add_captioning):
        add_options(parser)
    _add_short_form(
        verbs,
        ("classify", "classification", "name what images show"),
        ['upv2 classify photo.jpg --labels "indoors, outdoors"', "upv2 classify photo.jpg --top-k 3"],
        [_add_labels, _add_ranking],
    )
    _add_short_form(
        verbs,
        ("segment", "segmentation", "outline the objects of images"),
        ["upv2 segment photo.jpg", 'upv2 segment photo.jpg --labels "cat, sofa" --threshold 0.5'],
        [_add_labels, _add_drawing],
    )
    _add_short_form(
        verbs,
        ("caption", "captioning", "describe images in a sentence"),
        ["upv2 caption photo.jpg", 'upv2 caption photo.jpg --prompt "a photo of"'],
        [_add_captioning],
    )
    _add_retrieve(verbs)


def _add_short_form(
    verbs: Verbs,
    described: tuple[str, str, str],
    examples: Sequence[str],
    options: Sequence[Callable[[argparse.ArgumentParser], None]],
) -> None:
    """Add a verb that is `predict` for one task; it is described by its name, the task and a summary."""
    verb, task, summary = described
    parser = add_verb(verbs, verb, functools.partial(predict, task=task), summary, examples)
    _add_images(parser)
    for add_options in options:
        add_options(parser)


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file or an address; several are allowed")
    add_model_option(parser)
    add_json_option(parser)


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--labels", type=names, help='any names with commas between them, "cat, sofa" (default: the model\'s own)'
    )


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threshold", type=probability, default=0.3, help="least score (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="FOLDER", help="where the drawn pictures go (default: here)"
    )


def _add_ranking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--top-k", type=positive, default=5, help="how many labels (default: %(default)s)")


def _add_captioning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", default="", help="how the caption begins")
    parser.add_argument("--num-beams", type=positive, default=1, help="beams of the search (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=positive, default=40, help="longest caption (default: %(default)s)")


def predict(options: argparse.Namespace, task: str) -> None:
    """Ask about every image, print the answers, draw those that have a place."""
    question = QUESTIONS[task]
    labels = getattr(options, "labels", None)
    if labels and not question.has_labels:
        asked = [name for name, other in QUESTIONS.items() if other.has_labels]
        raise ValueError(f"`--labels` needs one of the tasks {asked}, got {task!r}. Leave the option out.")
    if question.is_drawn:
        _check_names(options.images)
        _check_folder(options.out)
    quiet_libraries()

    from tqdm.auto import tqdm

    from transformers_upv2.model.image_inputs import open_image

    ask = _load_pipeline(question, options.model, labels)
    results = []
    for name in tqdm(options.images, desc="Images", disable=len(options.images) == 1):
        image = open_image(name)
        answers = ask(image, **question.call(options))
        picture = _draw(image, answers, options.out / f"{Path(name).stem}_{task}.png") if question.is_drawn else None
        results.append({"image": name, "task": task, "answers": answers, "picture": picture})
    _print_results(results, question, as_json=options.json)


def _check_names(images: Sequence[str]) -> None:
    stems = [Path(image).stem for image in images]
    double = sorted({stem for stem in stems if stems.count(stem) > 1})
    if double:
        raise ValueError(
            f"`IMAGE` files must have different names, since the pictures are named after them, got {double} more "
            "than once. Ask about them one folder at a time, each with its own `--out`."
        )


def _check_folder(out: Path) -> None:
    if out.is_file() or out.suffix.lower() in PICTURE_SUFFIXES:
        raise ValueError(f"`--out` must be a folder, where each picture gets its image's name, got {out}.")


def _load_pipeline(question: Question, model: str, labels: Sequence[str] | None) -> Any:
    from transformers import AutoTokenizer, pipeline

    import transformers_upv2  # noqa: F401  registers the pipelines

    check_model(model)
    ask: Any = pipeline(question.pipeline, model=model)  # type: ignore[call-overload]
    if labels:
        ask.model.set_labels(labels, AutoTokenizer.from_pretrained(model))
    return ask


def _draw(image: Any, answers: Sequence[Answer], file: Path) -> str:
    from transformers_upv2.evaluation.drawing import draw_detections

    file.parent.mkdir(parents=True, exist_ok=True)
    draw_detections(image, answers).save(file)
    return str(file)


def _print_results(results: Sequence[Answer], question: Question, as_json: bool) -> None:
    if as_json:
        print_json([{**result, "answers": [_plain(answer) for answer in result["answers"]]} for result in results])
        return
    for result in results:
        if len(results) > 1:
            print(f"{result['image']}:")
        if result["answers"]:
            print_table(question.header, [question.row(answer) for answer in result["answers"]])
        else:
            print(f"nothing with a score above the threshold in {result['image']}")
        if result["picture"]:
            print(f"picture: {result['picture']}")


def _plain(answer: Answer) -> Answer:
    """Replace a mask by COCO run lengths, which JSON can hold."""
    if "mask" not in answer:
        return answer

    import numpy as np

    from transformers_upv2.model.coco_masks import encode_mask

    return {**answer, "mask": encode_mask(np.asarray(answer["mask"]))}


def _add_retrieve(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "retrieve",
        retrieve,
        "find images by a text or by an image",
        [
            'upv2 retrieve "a red ball on the left" --images photos',
            'upv2 retrieve "two dogs" --images photos --index photos.safetensors',
            "upv2 retrieve like_this.jpg --index photos.safetensors --top-k 10   # searches the index as it is",
        ],
    )
    parser.add_argument("query", metavar="QUERY", help="a text, or the file of an image")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="where to search, with its subfolders")
    parser.add_argument("--index", type=index_file, metavar="FILE", help="keep the index here for the next time")
    parser.add_argument("--top-k", type=positive, default=5, help="how many images (default: %(default)s)")
    add_model_option(parser)
    add_json_option(parser)


def retrieve(options: argparse.Namespace) -> None:
    """Index the images, or what is new of them, and search."""
    has_index = options.index is not None and options.index.is_file()
    if not has_index and options.images is None:
        raise ValueError(
            f"`--images` must name a folder to search in, or `--index` a saved index, got {options.index}."
        )
    if not options.query.strip():
        raise ValueError(
            f"`QUERY` must be a text or the file of an image, got {options.query!r}. Say what to look for."
        )
    quiet_libraries()

    from transformers import pipeline

    import transformers_upv2  # noqa: F401  registers the pipelines
    from transformers_upv2.model.image_index import ImageIndex, is_image_name

    query = Path(options.query) if os.path.isfile(options.query) else options.query
    if isinstance(query, str) and is_image_name(query):
        raise ValueError(f"`QUERY` must be a text or the file of an image, got {query!r}, which does not exist.")
    check_model(options.model)
    search: Any = pipeline("image-text-retrieval", model=options.model)  # type: ignore[call-overload]
    if has_index:
        search.index = ImageIndex.load(options.index)
    if options.images is not None:
        search.build_index(options.images)  # what a loaded index knows of unchanged files is taken over
        if options.index is not None:
            search.index.save(options.index)
    found = search(query, top_k=options.top_k)
    if options.json:
        print_json(found)
    else:
        print_table(("score", "image"), [(item["score"], item["image"]) for item in found])
