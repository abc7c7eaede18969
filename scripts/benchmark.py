"""Time our model beside the specialists of transformers, on a CPU, with random weights.

    python scripts/benchmark.py                       # both sections, Swin-Base at 640 x 640
    python scripts/benchmark.py --section encoding    # only the second
    python scripts/benchmark.py --small --image-size 64 --repeats 1   # does it run? the times say nothing

Section "detection": the bare backbone, our detection with masks (4 and 5 levels, fp32 and bf16) and Mask2Former.
Section "encoding": what one encoding saves, many labels against one, and all answers against the sum of specialists.

The cases of a table are timed in turn, forwards and backwards, after a warm-up each, so that whatever else the machine
does hits all of them; medians are printed. Multiply-adds are counted as `upv2 info` counts them. Ours is deployed with
`merge_experts`. Labels and vocabulary are encoded before the clock starts unless a line says "new". All models of a
section are in memory at once.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmark_models import (
    NUM_OBJECTS,
    make_captioner,
    make_classifier,
    make_config,
    make_dual_encoder,
    make_labels,
    make_mask2former,
    make_ours,
    parts_of_mask2former,
    parts_of_ours,
)
from transformers_upv2 import (
    UniPerceiverV2Config,
    UniPerceiverV2ForConditionalGeneration,
    UniPerceiverV2ForImageClassification,
    UniPerceiverV2ForImageTextRetrieval,
    UniPerceiverV2ForZeroShotObjectDetection,
)
from transformers_upv2.model_summary import count_multiply_adds

MANY_LABELS = 1000
USUAL_SIZE = 384
CAPTION = {"min_new_tokens": 16, "max_new_tokens": 16, "do_sample": False, "num_beams": 1}
Times = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Case:
    """One computation that is timed.

    Args:
        name: In the table.
        run: The computation.
        parts: Modules whose share of the time is told.
        counted: Count multiply-adds as well.
    """

    name: str
    run: Callable[[], object]
    parts: Mapping[str, nn.Module] = field(default_factory=dict)
    counted: bool = True


def time_once(case: Case) -> dict[str, float]:
    """Run a case; return the seconds of its parts, of the rest and in total."""
    seconds = dict.fromkeys(case.parts, 0.0)
    handles = []
    for name, module in case.parts.items():

        def before(*_: object, name: str = name) -> None:
            seconds[name] -= time.perf_counter()

        def after(*_: object, name: str = name) -> None:
            seconds[name] += time.perf_counter()

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    start = time.perf_counter()
    case.run()
    total = time.perf_counter() - start
    for handle in handles:
        handle.remove()
    return {**seconds, "rest": total - sum(seconds.values()), "total": total}


def measure(cases: Sequence[Case], repeats: int) -> tuple[Times, dict[str, dict[str, int]]]:
    """Time cases in turn; return median seconds and multiply-adds, by case and part."""
    operations = {}
    with torch.inference_mode():
        for case in cases:
            case.run()
            if case.counted:
                counts = count_multiply_adds(case.run, case.parts)
                operations[case.name] = {**counts, "total": sum(counts.values())}
        rounds: dict[str, list[dict[str, float]]] = {case.name: [] for case in cases}
        for index in range(repeats):
            for case in cases if index % 2 == 0 else reversed(cases):
                rounds[case.name].append(time_once(case))
            print(f"round {index + 1} of {repeats}", file=sys.stderr, flush=True)
    medians = {
        name: {part: statistics.median(run[part] for run in runs) for part in runs[0]} for name, runs in rounds.items()
    }
    return medians, operations


def detection_cases(config: UniPerceiverV2Config, size: int, dtypes: Sequence[str]) -> list[Case]:
    """The bare backbone, ours with 4 and 5 levels, and Mask2Former, in each dtype."""
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    ours = {levels: make_ours(config, ["detection"], levels) for levels in (4, 5)}
    mask2former = make_mask2former(config)
    cases = []
    for name in dtypes:
        dtype = getattr(torch, name)
        is_first = name == dtypes[0]
        inputs = pixels.to(dtype)
        models = {f"ours, {levels} levels": model for levels, model in ours.items()} | {"Mask2Former": mask2former}
        models = {title: (model if is_first else copy.deepcopy(model)).to(dtype) for title, model in models.items()}
        backbone = models["ours, 4 levels"].model.image_encoder.backbone
        cases.append(Case(f"backbone alone, {name}", _call(backbone, inputs), counted=is_first))
        for title, model in models.items():
            parts = parts_of_mask2former(model) if model is models["Mask2Former"] else parts_of_ours(model)
            cases.append(Case(f"{title}, {name}", _call(model, inputs), parts, is_first))
    return cases


def detection_section(config: UniPerceiverV2Config, options: argparse.Namespace) -> dict[str, object]:
    """Print times, multiply-adds and ratios of detection with masks; return them."""
    size = options.image_size
    times, operations = measure(detection_cases(config, size, options.dtypes), options.repeats)
    print(f"\nDetection with masks, one image of {size} x {size}\n")
    columns = ["backbone", "pixel_decoder", "query_decoder", "unified_decoder", "rest", "total"]
    print_table("seconds", columns, times)
    print_table("multiply-adds (G)", columns, {k: {p: n / 1e9 for p, n in v.items()} for k, v in operations.items()})
    ratios = {
        f"ours, {levels} levels / Mask2Former, {name}": times[f"ours, {levels} levels, {name}"]["total"]
        / times[f"Mask2Former, {name}"]["total"]
        for name in options.dtypes
        for levels in (4, 5)
    }
    print_ratios(ratios)
    return {"seconds": times, "multiply_adds": operations, "ratios": ratios}


def label_cases(config: UniPerceiverV2Config, pixels: Tensor) -> list[Case]:
    """Zero-shot detection from pixels with few and many labels."""
    detector = UniPerceiverV2ForZeroShotObjectDetection.from_model(make_ours(config, ["detection"]))
    labels = make_labels(MANY_LABELS, config.vocab_size)["token_ids"]
    input_ids = torch.tensor([variants[0] for variants in labels])

    def detect_new(number: int) -> Callable[[], object]:
        def run() -> object:
            detector.model.candidate_cache.clear()
            return detector(pixel_values=pixels, input_ids=input_ids[:number])

        return run

    cases = [Case(f"{number} new labels", detect_new(number)) for number in (1, NUM_OBJECTS)]
    for number in (1, NUM_OBJECTS, MANY_LABELS):
        known = detector.model.text_candidates(labels[:number])
        cases.append(Case(f"{number} known labels", _call(detector, pixels, candidates=known)))
    return cases


def answer_cases(config: UniPerceiverV2Config, pixels: Tensor, usual_pixels: Tensor, dtype: torch.dtype) -> list[Case]:
    """Ours: perceive, and all answers; the specialists: one for each answer."""
    pixels, usual_pixels = pixels.to(dtype), usual_pixels.to(dtype)
    segmenter = make_ours(config, ["classification", "detection", "captioning", "retrieval"]).to(dtype)
    classifier = UniPerceiverV2ForImageClassification.from_model(segmenter)
    captioner = UniPerceiverV2ForConditionalGeneration.from_model(segmenter)
    retriever = UniPerceiverV2ForImageTextRetrieval.from_model(segmenter)
    base = segmenter.model
    # encoding a whole vocabulary takes minutes, and only its size matters for the time of a caption
    vocabulary = nn.functional.normalize(torch.randn(len(base.vocabulary_ids()), config.hidden_size), dim=-1).to(dtype)
    base.candidate_cache.get(base, "vocabulary", lambda: vocabulary)

    def answer_all() -> None:
        encoding = segmenter.encode_image(pixels, keep_mask_features=True)
        classifier(image_encoding=encoding)
        segmenter(image_encoding=encoding)
        retriever.get_image_features(image_encoding=encoding)
        captioner.generate(image_encoding=encoding, **CAPTION)

    specialists = {
        "classifier (Swin)": make_classifier(config).to(dtype),
        "retrieval (dual encoder)": make_dual_encoder(config).to(dtype).get_image_features,
        "captioner (Swin and RoBERTa)": _caption(make_captioner(config).to(dtype)),
    }
    cases = [
        Case("ours: perceive only", lambda: segmenter.encode_image(pixels, keep_mask_features=True)),
        Case("ours: perceive and answer all", answer_all),
        Case("Mask2Former", _call(make_mask2former(config).to(dtype), pixels)),
    ]
    for name, model in specialists.items():
        cases.append(Case(name, _call(model, pixels)))
        cases.append(Case(f"{name}, {USUAL_SIZE}", _call(model, usual_pixels)))
    return cases


def encoding_section(config: UniPerceiverV2Config, options: argparse.Namespace) -> dict[str, object]:
    """Print what one encoding saves; return it."""
    generator = torch.Generator().manual_seed(0)
    size = options.image_size
    pixels, usual_pixels = (torch.randn(1, 3, s, s, generator=generator) for s in (size, min(size, USUAL_SIZE)))
    labels, _ = measure(label_cases(config, pixels), options.repeats)
    print(f"\nZero-shot detection, one image of {size} x {size}\n")
    print_table("seconds", ["total"], labels)
    ratios = {
        f"{number} {kind} labels / 1 {kind} label": labels[f"{number} {kind} labels"]["total"]
        / labels[f"1 {kind} labels"]["total"]
        for kind, number in (("new", NUM_OBJECTS), ("known", NUM_OBJECTS), ("known", MANY_LABELS))
    }
    seconds: dict[str, object] = dict(labels)
    for name in options.dtypes:
        times, _ = measure(answer_cases(config, pixels, usual_pixels, getattr(torch, name)), options.repeats)
        named = {f"{case}, {name}": value for case, value in times.items()}
        print(f"\nClass, objects with masks, retrieval and a caption of {size} x {size}\n")
        print_table("seconds", ["total"], named)
        seconds |= named
        ratios |= answer_ratios(times, size, name)
    print_ratios(ratios)
    return {"seconds": seconds, "ratios": ratios}


def answer_ratios(times: Times, size: int, dtype: str) -> dict[str, float]:
    """Compare all answers from one encoding with the specialists' sum, at two image sizes of theirs."""
    at_usual_size = [name for name in times if name.endswith(f", {USUAL_SIZE}")]
    at_one_size = [name.removesuffix(f", {USUAL_SIZE}") for name in at_usual_size]
    all_answers = times["ours: perceive and answer all"]["total"]

    def summed(cases: Sequence[str]) -> float:
        return sum(times[case]["total"] for case in ("Mask2Former", *cases))

    return {
        f"all answers / sum of specialists, all at {size}, {dtype}": all_answers / summed(at_one_size),
        f"all answers / sum of specialists, all but Mask2Former at {USUAL_SIZE}, {dtype}": all_answers
        / summed(at_usual_size),
    }


def print_table(title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, float]]) -> None:
    """Print rows of numbers; a part that a row has not is left out."""
    width = max(map(len, [title, *rows]))
    print(title.ljust(width), *(column.rjust(15) for column in columns))
    for name, row in rows.items():
        cells = [f"{row[column]:.3f}" if column in row else "" for column in columns]
        print(name.ljust(width), *(cell.rjust(15) for cell in cells))
    print()


def print_ratios(ratios: Mapping[str, float]) -> None:
    """Print ratios of times, one a line."""
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")


def _call(model: Callable[..., object], pixels: Tensor, **arguments: object) -> Callable[[], object]:
    return lambda: model(pixels, **arguments)


def _caption(captioner: nn.Module) -> Callable[[Tensor], object]:
    return lambda pixels: captioner.generate(pixels, **CAPTION)


SECTIONS = {"detection": detection_section, "encoding": encoding_section}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sections."""
    description, *_ = (__doc__ or "").split("\n")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--section", choices=[*SECTIONS, "all"], default="all")
    parser.add_argument("--preset", default="swin-base", help="with a Swin backbone (default: swin-base)")
    parser.add_argument("--image-size", type=int, default=640, help="height and width (default: 640)")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    parser.add_argument("--small", action="store_true", help="tiny widths, to see that the script runs")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = make_config(options.preset, small=options.small)
    print(f"{options.preset}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    chosen = list(SECTIONS) if options.section == "all" else [options.section]
    results = {name: SECTIONS[name](config, options) for name in chosen}
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
