"""The command line: `upv2 VERB`. Each verb parses, builds and calls; what it needs is imported when it runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def make_world(options: argparse.Namespace) -> None:
    """Write the demo world."""
    from transformers_upv2.data.demo_world import make_world as write_world

    write_world(options.out, seed=options.seed)
    print(f"The demo world is in {options.out}; its README.txt says what lies where.")


def build_parser() -> argparse.ArgumentParser:
    """Describe all verbs."""
    parser = argparse.ArgumentParser(prog="upv2", description="Uni-Perceiver v2 for Hugging Face.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    world = verbs.add_parser(
        "make-world",
        help="write the demo world: scenes with boxes, masks, classes, captions and text",
        description="Write the demo world in the formats of real data sets (extra `demo`).",
        epilog="example: upv2 make-world --out runs/world --seed 0",
    )
    world.add_argument("--out", type=Path, required=True, help="a folder that is empty or does not exist")
    world.add_argument("--seed", type=int, default=0, help="everything depends on it (default: 0)")
    world.set_defaults(run=make_world)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit code: 0, or 1 for an error that the user can mend.
    """
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        print(f"upv2 {options.verb}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
