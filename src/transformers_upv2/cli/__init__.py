"""The command line: `upv2 VERB`.

A verb that is about a model takes it first, `upv2 serve MODEL`; one that is about images or a text takes these first
and the model as an option, `upv2 caption photo.jpg --model MODEL`.

Each module beside this one describes a group of verbs. A verb imports what it needs when it runs, so that `--help`
answers at once. Results go to standard output, progress and errors to standard error.
"""

import argparse
import sys
from collections.abc import Sequence

from safetensors import SafetensorError

from transformers_upv2.cli.ask import add_verbs as add_asking_verbs
from transformers_upv2.cli.deliver import add_verbs as add_delivering_verbs
from transformers_upv2.cli.evaluate import add_verbs as add_evaluating_verbs
from transformers_upv2.cli.make import add_verbs as add_making_verbs
from transformers_upv2.cli.measure import add_verbs as add_measuring_verbs

GROUPS = (add_asking_verbs, add_evaluating_verbs, add_measuring_verbs, add_making_verbs, add_delivering_verbs)
MENDABLE = (OSError, ValueError, ImportError, SafetensorError)
"""Errors that tell the user what to do; all others are bugs and keep their traceback."""
INTERRUPTED = 130
"""Exit code of a run that was stopped by Ctrl-C, as shells expect it."""


def build_parser() -> argparse.ArgumentParser:
    """Describe all verbs."""
    parser = argparse.ArgumentParser(
        prog="upv2",
        description="Uni-Perceiver v2 for Hugging Face: one checkpoint, six tasks.",
        epilog="`upv2 VERB --help` shows examples. Exit codes: 0 done, 1 an error that its message tells how to mend, "
        "2 a wrong command line, 130 interrupted.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add_verbs in GROUPS:
        add_verbs(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit code: 0; 1 for an error that the user can mend; 130 if interrupted.
    """
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print(f"upv2 {options.verb}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except MENDABLE as error:
        print(f"upv2 {options.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0
