"""Files of tensors that this package wrote, opened with an error that says what to do."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open


def open_tensors(path: str | Path, writer: str, device: torch.device | str = "cpu") -> Any:
    """Open a safetensors file.

    Args:
        path: The file.
        writer: What writes such files, for the message.
        device: Where the tensors go.

    Returns:
        The open file, a context manager.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or no such file.
    """
    try:
        return safe_open(path, framework="pt", device=str(device))
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"`path` must be a whole file written by `{writer}`, '{path}' is damaged or something else ({error}). "
            "Write it again, or pass another."
        ) from error
