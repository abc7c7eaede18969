import gzip
import json

import pytest

from transformers_upv2.data.examples import DataError
from transformers_upv2.data.text_corpus import TextCorpus


def texts(corpus):
    return [corpus[index]["text"] for index in range(len(corpus))]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf\r\nthree")
    corpus = TextCorpus(str(tmp_path / "*.txt"))
    assert texts(corpus) == ["one", "two", "three"]
    assert corpus.num_skipped == 2


def test_lines_of_json_hold_their_text(tmp_path):
    rows = [{"text": "one\ntwo é", "id": 1}, {"id": 2}, {"text": " "}, ["x"], {"text": "three"}]
    content = "".join(f"{json.dumps(row)}\n" for row in rows) + '{"text": "fo'
    (tmp_path / "a.jsonl").write_text(content)
    corpus = TextCorpus(tmp_path / "a.jsonl")
    assert [corpus[index]["text"] for index in (0, 4)] == ["one\ntwo é", "three"]
    for index, found in ((1, r"\['id'\]"), (2, r"\['text'\]"), (3, "list")):
        with pytest.raises(DataError, match=rf"a\.jsonl: the line at byte \d+ must .* words in `text`, got {found}"):
            corpus[index]
    with pytest.raises(DataError, match=r"JSON object, as in all of a `\.jsonl` file, but got: Unterminated"):
        corpus[5]


@pytest.mark.parametrize("content", [gzip.compress(b"one\n" * 99), "one\ntwo".encode("utf-16"), b"PAR1\x15\0"])
def test_a_file_that_is_no_plain_text_is_an_error(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt: the text file must be plain text in UTF-8, got .* Unpack it"):
        TextCorpus(tmp_path / "a.txt")
