"""Upload a checkpoint to the Hub: model, processor, label sets, card, and the code that loads them.

What is uploaded is put together in a temporary folder; the user's own folder stays as it is. With the package a
repository loads without ``trust_remote_code``. Without it the repository's own code does the same: a flat copy of
those files of ``model/`` that transformers follows from the classes that the config names, see `code_files`.
"""

import importlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, save_torch_state_dict
from huggingface_hub.utils import httpx
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.pipelines import PIPELINE_REGISTRY

from transformers_upv2.model.candidates import CANDIDATES_NAME
from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.model.registration import MODELS, OWN_PIPELINES, STOCK_PIPELINES

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
CARD = "README.md"
MAX_SHARD_SIZE = 5 * 10**9
"""Bytes; the Hub asks for files that are not much larger."""

REQUIRED_FILES = {
    "config.json": "the model's config (`model.save_pretrained`)",
    "processor_config.json": "the processor (`processor.save_pretrained`)",
    "tokenizer.json": "the tokenizer (`processor.save_pretrained`)",
    "tokenizer_config.json": "the tokenizer's config (`processor.save_pretrained`)",
    CARD: "the model card (`transformers_upv2.model_card.fill_card`)",
}
# A training run leaves more in its folder: optimizer states, logs, copies of annotations. None of it is uploaded.
OPTIONAL_FILES = (
    "generation_config.json",
    CANDIDATES_NAME,
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "LICENSE",
    "NOTICE",
)
PICTURES = (".jpg", ".jpeg", ".png")
OUTDATED = ["*.safetensors", "*.safetensors.index.json", "*.py"]  # of an earlier upload


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    commit_message: str = "Upload model, processor, card and code",
    max_shard_size: int = MAX_SHARD_SIZE,
) -> str:
    """Upload a complete folder in one commit; the repository is made if it does not exist.

    Args:
        folder: What ``save_pretrained`` of model and processor wrote, with a card.
        repo_id: Name of the repository, ``"user/name"``.
        private: Whether a new repository is private; None: the account's default.
        commit_message: First line of the commit.
        max_shard_size: Weights of more bytes are uploaded in several files.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If the folder is incomplete or holds weights that are not safetensors.
        OSError: If the Hub cannot be reached or refuses. A failed upload commits nothing.
    """
    api = HfApi()
    with upload_folder(folder, repo_id, max_shard_size) as prepared:
        try:
            repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=prepared,
                commit_message=commit_message,
                delete_patterns=OUTDATED,
            )
        except (RuntimeError, httpx.TransportError) as error:  # a large file did not arrive; no Hub, or it fell silent
            raise OSError(
                f"The upload to {repo_id} must end with a commit, but broke off ({error.__cause__ or error}). The "
                "repository is as it was. Push again."
            ) from error
    return commit.commit_url


@contextmanager
def upload_folder(
    folder: str | Path, repo_id: str | None = None, max_shard_size: int = MAX_SHARD_SIZE
) -> Iterator[Path]:
    """Put together what is uploaded, in a temporary folder.

    Args:
        folder: The user's folder.
        repo_id: The name that the card's code shall use.
        max_shard_size: Weights of more bytes are written in several files.

    Yields:
        The temporary folder; it exists as long as the context.

    Raises:
        ValueError: If the folder is incomplete or holds weights that are not safetensors.
    """
    folder = Path(folder)
    check_folder(folder)
    with tempfile.TemporaryDirectory() as name:
        target = Path(name)
        card = (folder / CARD).read_text(encoding="utf-8")
        for file in folder.iterdir():
            if _is_uploaded(file, card):
                shutil.copy(file, target)
        _copy_weights(folder, target, max_shard_size)
        if repo_id is not None:
            card = re.sub(r'^folder = ".*?"', f'folder = "{repo_id}"', card, flags=re.MULTILINE)
            (target / CARD).write_text(card, encoding="utf-8")
        _add_code(target)
        yield target


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not complete.

    Raises:
        ValueError: With everything that is missing or must not be there.
    """
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a folder with a saved model, got {folder}, which does not exist.")
    missing = [f"{name}: {what}" for name, what in REQUIRED_FILES.items() if not (folder / name).is_file()]
    missing += _missing_weights(folder)
    if (folder / "config.json").is_file():
        missing += _missing_labels(folder)
    if missing:
        raise ValueError(f"`folder` must be complete to be uploaded, {folder} lacks " + "; ".join(missing) + ".")


def _missing_labels(folder: Path) -> list[str]:
    config = _read_json(folder / "config.json")
    if config.get("model_type") != UniPerceiverV2Config.model_type:
        raise ValueError(
            f"`folder` must hold a model of type {UniPerceiverV2Config.model_type!r}, {folder} holds "
            f"{config.get('model_type')!r}."
        )
    return [] if config.get("label_sets") else ["label sets in config.json: class names (`model.set_labels`)"]


def _missing_weights(folder: Path) -> list[str]:
    """Find weights files that are not there, or that break off before their end."""
    missing = []
    for file in _weights_files(folder):
        try:
            with safe_open(folder / file, framework="pt"):
                pass
        except FileNotFoundError:
            missing.append(f"{file}: weights (`model.save_pretrained`)")
        except SafetensorError as error:
            missing.append(f"{file}: whole weights, these are damaged ({error})")
    others = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    if others:
        raise ValueError(
            f"`folder` must hold weights as safetensors only, {folder} holds {', '.join(others)}. Load the model, "
            "save it with `save_pretrained` and remove these files."
        )
    return missing


def _weights_files(folder: Path) -> list[str]:
    """The weights file, or the shards that an index names."""
    if not (folder / WEIGHTS).is_file() and (folder / WEIGHTS_INDEX).is_file():
        return sorted(set(_read_json(folder / WEIGHTS_INDEX)["weight_map"].values()))
    return [WEIGHTS]


def _is_uploaded(file: Path, card: str) -> bool:
    if file.suffix in PICTURES:  # only what the card shows or uses: others may not be meant for the public
        return file.name in card
    return file.name in REQUIRED_FILES or file.name in OPTIONAL_FILES


def _copy_weights(folder: Path, target: Path, max_shard_size: int) -> None:
    """Copy the weights as they are, or split a file that is too large."""
    files = _weights_files(folder)
    if files == [WEIGHTS] and (folder / WEIGHTS).stat().st_size > max_shard_size:
        save_torch_state_dict(load_file(folder / WEIGHTS), target, max_shard_size=max_shard_size)
        return
    for file in files if files == [WEIGHTS] else [*files, WEIGHTS_INDEX]:
        shutil.copy(folder / file, target)


def _add_code(target: Path) -> None:
    """Copy the code, and name in the configs which class of it loads what."""
    for file in code_files():
        shutil.copy(file, target)
    processor_map = {"AutoProcessor": _reference(UniPerceiverV2Processor)}
    image_processor_map = processor_map | {"AutoImageProcessor": _reference(UniPerceiverV2ImageProcessor)}
    config = _read_json(target / "config.json")
    _write_json(target / "config.json", config | {"auto_map": auto_map(), "custom_pipelines": custom_pipelines()})
    processor = _read_json(target / "processor_config.json")
    image_processor = processor["image_processor"] | {"auto_map": image_processor_map}
    _write_json(
        target / "processor_config.json",
        processor | {"auto_map": processor_map, "image_processor": image_processor},
    )


def auto_map() -> dict[str, str]:
    """Which class of the uploaded code stands behind each Auto class."""
    models = {auto_class.__name__: _reference(model_class) for auto_class, model_class in MODELS.items()}
    return {"AutoConfig": _reference(UniPerceiverV2Config), **models}


def custom_pipelines() -> dict[str, dict[str, Any]]:
    """Pipelines that need a class of ours: its place in the uploaded code and the Auto class of its model."""
    pipelines = {}
    for task, pipeline_class in STOCK_PIPELINES.items():
        auto_classes = PIPELINE_REGISTRY.supported_tasks[task]["pt"]
        pipelines[task] = {"impl": _reference(pipeline_class), "pt": [item.__name__ for item in auto_classes]}
    auto_class_of = {model_class: auto_class for auto_class, model_class in MODELS.items()}
    for task, (pipeline_class, model_class) in OWN_PIPELINES.items():
        # a task model without an Auto class of its own is asked through the base model, which embeds as well
        auto_class = auto_class_of.get(model_class, AutoModel)
        pipelines[task] = {"impl": _reference(pipeline_class), "pt": [auto_class.__name__]}
    return pipelines


def code_files() -> list[Path]:
    """The files of ``model/`` that transformers reads when it loads our classes, found as it finds them."""
    references = [*auto_map().values(), _reference(UniPerceiverV2Processor)]
    references += [pipeline["impl"] for pipeline in custom_pipelines().values()]
    package = UniPerceiverV2Config.__module__.rpartition(".")[0]
    files = set()
    for module in {reference.split(".")[0] for reference in references}:
        file = importlib.import_module(f"{package}.{module}").__file__
        files |= {Path(str(file)), *map(Path, get_relative_import_files(str(file)))}
    return sorted(files)


def _reference(cls: type) -> str:
    """Name a class as a config does: its file and itself."""
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
