import json
import os
import shutil
import string
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from outside_data import COCO, NEEDS_COCO
from transformers_upv2.evaluation.caption_tokenizer import tokenize_caption

# Caption -> what Stanford's PTBTokenizer 3.4.1 makes of it, written by scripts/make_ptb_fixture.py.
STANFORD = json.loads((Path(__file__).parent / "ptb_captions.json").read_text(encoding="utf-8"))
COCO_CAPTIONS = COCO / "annotations" / "captions_train2017.json"


def test_equals_stanford():
    different = {c: tokenize_caption(c) for c, words in STANFORD.items() if tokenize_caption(c) != words}
    assert different == {}


def test_the_fixture_has_every_punctuation_class():
    for mark in string.punctuation:
        for place in (
            f"a dog{mark}",
            f"a {mark} dog",
            f"dog{mark}cat sits",
            f"a {mark}dog runs",
            f"room 3{mark}4 here",
        ):
            assert place in STANFORD


def test_some_captions_in_words():
    assert tokenize_caption("A man can't ride; it's o'clock.") == "a man ca n't ride it 's o'clock"
    assert tokenize_caption('"STOP/GO", at $5.00 (50%)!') == "stop/go at $ 5.00 -lrb- 50 % -rrb-"
    assert tokenize_caption("") == ""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None or not COCO_CAPTIONS.exists(), reason=f"needs Java; {NEEDS_COCO}")
def test_equals_stanford_on_coco_captions(monkeypatch):
    monkeypatch.setitem(os.environ, "JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8")
    annotations = json.loads(COCO_CAPTIONS.read_text())["annotations"]
    captions = {i: [annotation] for i, annotation in enumerate(annotations)}
    reference = PTBTokenizer().tokenize(captions)
    ours = {i: [tokenize_caption(a["caption"])] for i, a in enumerate(annotations)}
    assert ours == reference
