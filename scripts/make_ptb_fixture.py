"""Write again what Stanford's PTBTokenizer makes of the captions in ``tests/evaluation/ptb_captions.json``.

    python scripts/make_ptb_fixture.py

Needs Java and pycocoevalcap (extra ``metrics``), which brings the tokenizer; the tests need neither. To add a
caption, add a key to the file. The captions hold every ASCII punctuation mark before, behind, between and inside words
and numbers, typographic marks, clitics, abbreviations, and the constructs of real captions.
"""

import json
import os
import shutil
from pathlib import Path

from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

FIXTURE = Path(__file__).resolve().parent.parent / "tests" / "evaluation" / "ptb_captions.json"


def main() -> None:
    """Tokenize all captions with Java and rewrite the file."""
    if shutil.which("java") is None:
        raise SystemExit("`java` must be installed, found none. The fixture in the repository stays as it is.")
    os.environ["JAVA_TOOL_OPTIONS"] = "-Dfile.encoding=UTF-8"  # or typographic marks become question marks
    captions = list(json.loads(FIXTURE.read_text(encoding="utf-8")))
    words = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(captions)})
    content = {text: words[number][0] for number, text in enumerate(captions)}
    FIXTURE.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(f"{FIXTURE}: {len(captions)} captions")


if __name__ == "__main__":
    main()
