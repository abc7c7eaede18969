"""Checkpoints that are there whole or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

INCOMPLETE_FOLDER = "incomplete"


class AtomicCheckpoints(Trainer):
    """A Trainer that writes a checkpoint elsewhere and renames it when all of it is on the disk.

    A process that is killed while saving leaves ``incomplete/`` behind, which is never resumed from
    and replaced by the next save.
    """

    _run_folder: str | None = None

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
                f"with `resume_from_checkpoint=True`; the newest whole one is {get_last_checkpoint(run_folder)}."
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
            super()._save_checkpoint(model, trial)
        finally:
            self._run_folder = None
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(run_folder / name)
        if self.args.should_save:
            self.state.save_to_json(str(incomplete / name / TRAINER_STATE_NAME))
            _flush_to_disk(incomplete / name)
            if (run_folder / name).exists():  # from an earlier run over the same step
                os.replace(run_folder / name, incomplete / "old")
            os.replace(incomplete / name, run_folder / name)
            shutil.rmtree(incomplete, ignore_errors=True)
            rotate_checkpoints(
                output_dir=str(run_folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()


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
