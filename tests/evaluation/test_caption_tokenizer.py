import json
import shutil
from pathlib import Path

import pytest
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from transformers_upv2.evaluation.caption_tokenizer import tokenize_caption

COCO_CAPTIONS = Path(__file__).parents[3] / "shared/data/coco_small/annotations/captions_train2017.json"

# Right-hand sides are the output of Stanford's PTBTokenizer 3.4.1 as pycocoevalcap calls it.
STANFORD = {
    "A man can't ride; it's o'clock.": "a man ca n't ride it 's o'clock",
    "The dogs' toys aren't \"here\" ('maybe').": "the dogs toys are n't here -lrb- maybe -rrb-",
    "A black-and-white dog -- running - fast... ok?": "a black-and-white dog running fast ok",
    "Signs say STOP/GO, 3/4 of 50% at $5.00!": "signs say stop/go 3/4 of 50 % at $ 5.00",
    "No.1 U.S. flag at 10:30 a.m. on St. Mary's": "no. 1 u.s. flag at 10:30 a.m. on st. mary 's",
    "cannot gonna wanna": "can not gon na wan na",
    "A #5 bus & a [box]": "a # 5 bus & a -lsb- box -rsb-",
    "we've he'd you're rock 'n' roll": "we 've he 'd you 're rock 'n' roll",
    "two-door,red;blue:green": "two-door red blue green",
    "3D TV's 12th 70's '90s 1,000": "3d tv 's 12th 70 's '90s 1,000",
    "\u201cquoted\u201d \u2018single\u2019 \u2013 dash": "quoted single dash",
    "what?! hello!!! there": "what ?! hello !!! there",
    "person w/ hat": "person w / hat",
    "a dog.. b.": "a dog b.",
    "": "",
}


@pytest.mark.parametrize(("caption", "expected"), STANFORD.items())
def test_equals_stanford(caption, expected):
    assert tokenize_caption(caption) == expected


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None or not COCO_CAPTIONS.exists(), reason="needs Java and captions")
def test_equals_stanford_on_coco_captions():
    annotations = json.loads(COCO_CAPTIONS.read_text())["annotations"]
    captions = {i: [annotation] for i, annotation in enumerate(annotations)}
    reference = PTBTokenizer().tokenize(captions)
    ours = {i: [tokenize_caption(a["caption"])] for i, a in enumerate(annotations)}
    assert ours == reference
