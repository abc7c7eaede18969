"""Checkpoints that are there whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput, rotate_checkpoints, sort_checkpoints
from transformers.utils import logging
from typing_extensions import override

logger = logging.get_logger(__name__)

INCOMPLETE_FOLDER = "_incomplete"
"""The underscore keeps it from being uploaded."""
FILE_SIZES_NAME = "file_sizes.json"
"""The file of a checkpoint that says which others belong to it."""


class AtomicCheckpoints(Trainer):
    """A Trainer that writes a checkpoint elsewhere and renames it when all of it is on the disk.

    A process that is killed while saving leaves ``_incomplete/`` behind, which is never resumed from
    and replaced by the next save.
    """

    _run_folder: str | None = None

    @override
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as ``transformers.Trainer`` does; ``True`` goes on from the newest checkpoint that is whole."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_checkpoint(self._get_output_dir(None)) or True
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return self._run_folder or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint.

        Raises:
            RuntimeError: If that fails, say for want of space.
        """
        try:
            self._save_whole(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            run_folder = self._get_output_dir(trial)
            free = shutil.disk_usage(run_folder).free / 2**30
            raise RuntimeError(
                f"The checkpoint of step {self.state.global_step} must be written to {run_folder}, where {free:.1f} "
                f"GiB are free, but got: {error}. Make room, if need be with a lower `save_total_limit`, and go on "
                f"with `resume_from_checkpoint=True`; the newest whole one is {newest_checkpoint(run_folder)}."
            ) from error

    def _save_whole(self, model: nn.Module, trial: Any) -> None:
        run_folder = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        incomplete = run_folder / INCOMPLETE_FOLDER
        if self.args.should_save:
            shutil.rmtree(incomplete, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._run_folder = str(incomplete)
        try:
            with _own_names(self.accelerator.unwrap_model(model)):
                super()._save_checkpoint(model, trial)
        finally:
            self._run_folder = None
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(run_folder / name)
        if self.args.should_save:
            self.state.save_to_json(str(incomplete / name / TRAINER_STATE_NAME))
            sizes = json.dumps(_file_sizes(incomplete / name))
            (incomplete / name / FILE_SIZES_NAME).write_text(sizes, encoding="utf-8")
            _flush_to_disk(incomplete / name)
            if (run_folder / name).exists():  # from an earlier run over the same step
                os.replace(run_folder / name, incomplete / "old")
            os.replace(incomplete / name, run_folder / name)
            shutil.rmtree(incomplete, ignore_errors=True)
            if self.args.push_to_hub:
                self._push_from_checkpoint(str(run_folder / name))
            rotate_checkpoints(
                output_dir=str(run_folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()

    @override
    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload a checkpoint from where it stays; while it is being written, wait."""
        if self._run_folder is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Go on only if the checkpoint had all weights.

        Raises:
            RuntimeError: If it lacks some, which would keep their present values.
        """
        lost = set(load_result.missing_keys) - set(getattr(self.model, "all_tied_weights_keys", None) or ())
        lost -= set(getattr(self.model, "_keys_to_ignore_on_save", None) or ())
        if lost:
            raise RuntimeError(
                f"The checkpoint must hold every weight of the model, it lacks {len(lost)}, such as {min(lost)!r}. "
                "It comes from another model; start a new run with `from_pretrained`."
            )
        super()._issue_warnings_after_load(load_result)


def newest_checkpoint(folder: str | Path) -> str | None:
    """Return the newest checkpoint of a run that is whole; others are passed over with a warning.

    Args:
        folder: The run's output folder; it need not exist.

    Raises:
        ValueError: If there are checkpoints, but none is whole.
    """
    checkpoints = [path for path in reversed(sort_checkpoints(str(folder))) if Path(path).is_dir()]
    for path in checkpoints:
        damaged = _damaged_files(Path(path))
        if not damaged:
            return path
        logger.warning(f"{path} is passed over, since these of its files are missing or cut off: {damaged}.")
    if checkpoints:
        raise ValueError(
            f"One of the checkpoints in {folder} must be whole, got {len(checkpoints)} that lack files. Remove them "
            "to begin anew, or name one in `resume_from_checkpoint` to load it as it is."
        )
    return None


def _damaged_files(checkpoint: Path) -> list[str]:
    """Return what a checkpoint lacks of the files that it was saved with."""
    sizes = {TRAINER_STATE_NAME: None}  # all that is known of one by `transformers.Trainer` itself
    if (checkpoint / FILE_SIZES_NAME).is_file():
        sizes = json.loads((checkpoint / FILE_SIZES_NAME).read_text(encoding="utf-8"))
    found = _file_sizes(checkpoint)
    return [name for name, size in sizes.items() if name not in found or size not in (None, found[name])]


def _file_sizes(folder: Path) -> dict[str, int]:
    """Return the size of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


@contextmanager
def _own_names(model: nn.Module) -> Iterator[None]:
    """Let a model of transformers write its weights under the names they have in memory.

    Else some, such as Swin, write older names, which only `from_pretrained` understands: a Trainer that resumes would
    pass over them.
    """
    if not isinstance(model, PreTrainedModel):
        yield
        return
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.save_pretrained


def _flush_to_disk(folder: Path) -> None:
    """Wait until all files of a folder would survive a loss of power."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
