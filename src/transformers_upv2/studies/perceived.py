"""Images that are perceived once and asked many times in training, while the image side is locked."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from transformers_upv2.model.candidates import weights_digest
from transformers_upv2.model.image_encoding import ImageEncoding
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor

PERCEIVED_AT_ONCE = 50


class EncodedImages(Dataset[dict[str, Any]]):
    """A data set whose images have been perceived already."""

    def __init__(self, dataset: Dataset[dict[str, Any]], encoding: ImageEncoding) -> None:
        self.dataset = dataset
        self.encoding = encoding

    def __len__(self) -> int:
        return len(self.encoding)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "image_encoding": self.encoding[index]}


def wait() -> None:
    """Wait for the other processes, if there are any."""
    if dist.is_initialized():
        dist.barrier()


def perceive_all(
    model: UniPerceiverV2ForMultiTask, processor: UniPerceiverV2Processor, dataset: Any, file: Path
) -> ImageEncoding:
    """Perceive every image of a data set, each process its share, and keep the encodings in files.

    The weights are part of the names, so that encodings of another image side are never taken for these.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    stem = f"{file.name}-{weights_digest(model.model.image_encoder)[:16]}"
    kept = _kept_files(file.with_name(stem))
    wait()  # before any process writes
    if kept:
        return ImageEncoding.cat([ImageEncoding.load(part) for part in kept])
    ends = [len(dataset) * number // processes for number in range(processes + 1)]
    starts = range(ends[rank], ends[rank + 1], PERCEIVED_AT_ONCE)
    encodings = []
    with torch.no_grad():
        for start in tqdm(starts, desc=f"perceive {file.name}", disable=rank > 0):
            stop = min(start + PERCEIVED_AT_ONCE, ends[rank + 1])
            images = [dataset[index]["image"] for index in range(start, stop)]
            inputs: Any = processor(images=images, return_tensors="pt")  # type: ignore[call-arg]
            encodings.append(model.eval().model.encode_image(**inputs))
    part = file.with_name(f"{stem}-{rank}-of-{processes}.safetensors")
    unfinished = part.with_suffix(".part")
    ImageEncoding.cat(encodings).save(unfinished)
    unfinished.rename(part)
    wait()
    return ImageEncoding.cat([ImageEncoding.load(part) for part in _kept_files(file.with_name(stem))])


def _kept_files(stem: Path) -> list[Path]:
    """Return the files of all shares, in order, if none is missing, however many processes wrote them."""
    for first in stem.parent.glob(f"{stem.name}-0-of-*.safetensors"):
        number = int(first.stem.rsplit("-", 1)[1])
        files = [stem.with_name(f"{stem.name}-{share}-of-{number}.safetensors") for share in range(number)]
        if all(file.exists() for file in files):
            return files
    return []
