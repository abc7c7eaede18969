"""What is said when a loader worker dies, however that is noticed."""

import gc
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def explain_dead_workers(release: Callable[[], None]) -> Iterator[None]:
    """Say what to do when a loader worker dies in the block.

    Args:
        release: Lets go of the loaders that the frames of the block do not hold. As long as one is kept, torch raises
            the error again whenever any child process ends.

    Raises:
        RuntimeError: If a worker dies.
    """
    try:
        try:
            yield
        except (ConnectionError, EOFError) as error:
            # a worker that dies while it hands a batch over; the signal of its end may come here
            time.sleep(0.5)
            raise RuntimeError(f"DataLoader worker exited unexpectedly ({error!r}).") from error
    except RuntimeError as error:
        if not re.search(r"DataLoader worker .*(exited unexpectedly|killed by signal)", str(error)):
            raise
        traceback.clear_frames(error.__traceback__)
        release()
        gc.collect()
        raise RuntimeError(
            f"Every loader worker must live until the end, got: {error} A killed one has most often run out of "
            "memory: lower `num_workers` or `batch_sizes`, and go on with `resume_from_checkpoint=True`."
        ) from error
