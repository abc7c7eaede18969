"""What several verbs share: how a verb is described, its common options, tables and JSON."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DEFAULT_MODEL = "model_cards/uniperceiver-v2-tiny"
"""The shipped checkpoint, as seen from a checkout of the repository."""

Verbs = Any  # argparse does not make the type of its sub-parsers public


def add_verb(
    verbs: Verbs, name: str, run: Callable[[argparse.Namespace], None], summary: str, examples: Sequence[str]
) -> argparse.ArgumentParser:
    """Add a verb without its options.

    Args:
        verbs: The sub-parsers of ``upv2``.
        name: The verb.
        run: What it does.
        summary: One line for the list of verbs and for the verb's own help.
        examples: Command lines that work.

    Returns:
        The verb's parser.
    """
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``MODEL``, the first argument of a verb that is about a model."""
    parser.add_argument("model", metavar="MODEL", help="a saved model with its processor, or its name on the Hub")


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, for a verb that is about images or a text and asks a model about them."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="FOLDER_OR_REPO",
        help="a saved model with its processor, or its name on the Hub (default: %(default)s)",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON for scripts instead of a table")


def add_size_option(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add ``--image-size``."""
    parser.add_argument("--image-size", type=positive, nargs=2, metavar=("HEIGHT", "WIDTH"), help=meaning)


def positive(text: str) -> int:
    """Read a whole number that is at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def probability(text: str) -> float:
    """Read a number in [0, 1]."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1], got {number}")
    return number


def index_file(text: str) -> Path:
    """Read where an index is kept; better refused now than after an hour of embedding."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, got the folder {text!r}")
    return Path(text)


def names(text: str) -> list[str]:
    """Read names that commas separate."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"must be names with commas between them, got {text!r}")
    return found


def check_model(model: str) -> None:
    """Refuse what is no model of ours, and a folder that is not there, which the Hub's client would look for.

    Raises:
        ValueError: If the name is that of a missing folder, or the config is missing or another model's.
        OSError: If the Hub cannot be reached or has no such model.
    """
    is_address = model != DEFAULT_MODEL and model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if not Path(model).is_dir() and not is_address:
        raise ValueError(
            f"The model must be a folder with a saved model or a repository on the Hub, got {model!r}, which does "
            f"not exist. Name another, `upv2 VERB --help` says where. A checkout of this package's repository holds "
            f"{DEFAULT_MODEL!r}."
        )

    from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config

    wanted, found = UniPerceiverV2Config.model_type, UniPerceiverV2Config.get_config_dict(model)[0].get("model_type")
    if found != wanted:
        what = "none" if found is None else f"a model of type {found!r}"
        raise ValueError(f"{model!r} must hold a config.json of type {wanted!r}, it has {what}.")


def quiet_libraries() -> None:
    """Let transformers report errors only; what a verb has to say it says itself."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows in aligned columns, numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells)]
    numeric = [bool(rows) and isinstance(value, int | float) for value in (rows[0] if rows else header)]
    for line in [list(header), *cells]:
        aligned = [
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(line, widths, numeric)
        ]
        print("  ".join(aligned).rstrip())


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
