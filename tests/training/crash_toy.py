"""Train the toy tasks on some processes and kill them with SIGKILL at random moments until they are done.

Run as a script, since it forks: every attempt is a set of new processes that resume from the newest
whole checkpoint, as after a power cut. A save follows every update, so many kills hit one.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch
from multitask_toys import make_trainer, streamed_datasets
from transformers.trainer_utils import get_last_checkpoint

MAX_KILLS = 15
LONGEST_LIFE = 0.4  # of the time that the whole run takes


def work(folder: Path, rank: int, world_size: int, port: int) -> None:
    """What one process does."""
    addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    if world_size > 1:
        os.environ |= {name: str(value) for name, value in (addresses | ranks).items()}
    arguments = {"ddp_backend": "gloo"} if world_size > 1 else {}
    trainer = make_trainer(folder, datasets=streamed_datasets(), save_steps=1, save_total_limit=2, **arguments)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    torch.save(trainer.model.state_dict(), folder / f"final-{rank}.pt")


def start(folder: Path, world_size: int) -> list[int]:
    """Fork the processes and return their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world_size):
        process = os.fork()
        if process == 0:
            status = 1
            try:
                work(folder, rank, world_size, port)
                status = 0
            finally:
                os._exit(status)
        processes.append(process)
    return processes


def wait(processes: list[int], seconds: float) -> tuple[list[int], bool]:
    """Return who still runs when the time is over, and whether all others ended well."""
    end, is_good, running = time.monotonic() + seconds, True, list(processes)
    while running and time.monotonic() < end:
        for process in list(running):
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                running.remove(process)
                is_good &= status == 0
        time.sleep(0.002)
    return running, is_good


def main() -> None:
    folder, world_size, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    generator = random.Random(seed)
    (folder / "whole").mkdir(parents=True)
    begin = time.monotonic()
    left, is_good = wait(start(folder / "whole", world_size), 120)
    assert is_good
    assert not left
    duration = time.monotonic() - begin
    kills, hit_saves = 0, 0
    (folder / "killed").mkdir()
    while True:
        seconds = generator.uniform(0.0, LONGEST_LIFE * duration) if kills < MAX_KILLS else 120
        running, is_good = wait(start(folder / "killed", world_size), seconds)
        if not running:
            assert is_good
            break
        for process in generator.sample(running, len(running)):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        kills += 1
        hit_saves += (folder / "killed" / "_incomplete").exists()
    (folder / "report.json").write_text(json.dumps({"kills": kills, "hit_saves": hit_saves}))


if __name__ == "__main__":
    main()
