"""Fetch transformers' own tests, which its wheel leaves out, from the sdist of the installed version.

Example:
    ``python scripts/fetch_transformers_tests.py build`` prints the folder to name in ``TRANSFORMERS_TESTS``,
    ``build/transformers-<version>/tests``. What is there already is not fetched again.
"""

import argparse
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path


def fetch(folder: Path) -> Path:
    """Download and unpack the sdist of the installed transformers, unless it is there.

    Args:
        folder: Where sdists are kept.

    Returns:
        The folder of the tests.
    """
    name = f"transformers-{version('transformers')}"
    tests = folder / name / "tests"
    if not tests.is_dir():
        requirement = name.replace("-", "==")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", requirement]
        subprocess.run([*pip, "--dest", str(folder)], check=True)
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return tests


def main() -> None:
    """Read the command line and print the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the sdist is kept, such as build")
    print(fetch(parser.parse_args().folder).resolve())


if __name__ == "__main__":
    main()
