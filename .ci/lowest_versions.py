"""Print the lowest version of every requirement of setup.cfg, as constraints for pip: the CI job `lowest`.

python .ci/lowest_versions.py > lowest.txt && pip install -c lowest.txt -e '.[dev]'
"""

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.cfg"


def lowest_versions() -> list[str]:
    """Turn ``name>=version,<other`` into ``name==version``."""
    parser = configparser.RawConfigParser()
    parser.read(SETUP)
    lines = parser["options"]["install_requires"].split("\n")
    requirements = [line for line in lines if line.strip() and not line.startswith("#")]
    pins = []
    for requirement in requirements:
        found = re.fullmatch(r"([\w-]+)>=([\w.]+)(,<[\w.]+)?", requirement)
        if found is None:
            raise ValueError(f"Every requirement of {SETUP} must have a lower bound, got {requirement!r}.")
        pins.append(f"{found[1]}=={found[2]}")
    return pins


if __name__ == "__main__":
    print("\n".join(lowest_versions()))
