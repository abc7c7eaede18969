"""Split captions into words as the COCO caption evaluation does, without Java.

The field's scores are computed on the output of Stanford's PTBTokenizer, lower-cased and without
punctuation (https://github.com/tylin/coco-caption). `tokenize_caption` follows its rules as far
as captions need them: clitics are split off, abbreviations keep their dots, hyphenated words stay
whole, brackets become names. Rare constructs of prose may differ.
"""

import re
from collections.abc import Iterable

_PLAIN = str.maketrans(
    {
        "\u2018": "'",  # typographic quotation marks, dashes and the ellipsis
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "-",
        "\u2026": ".",
    }
)
_BRACKETS = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
}
_TOKEN = re.compile(
    r"""
      https?://\S+ | [\w.+-]+@[\w-]+\.\w+        # addresses
    | (?<!\w)(?:[a-z]\.)+(?!\w)                  # u.s. and initials
    | \b(?:mr|mrs|ms|dr|st|jr|sr|vs)\.           # titles keep their dot
    | \bno\.(?=\s?\d)                            # no. 1
    | [^\W_]+(?:[-'./&_]+[^\W_]+)*(?::\d+)?      # words and numbers, joined ones stay whole
      (?:,\d{3})*(?:\.\d+)?
    | '(?:s|m|d|ll|re|ve|n'|\d0s)(?!\w)          # clitics that stand alone, 'n', '90s
    | [!?]{2,}                                   # only single marks are dropped
    | [^\w\s]
    """,
    re.VERBOSE,
)
_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))$")
_FUSED = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "lemme": "lem me",
    "gimme": "gim me",
}
_DROPPED = frozenset("'`\".?!,:;-")


def tokenize_caption(caption: str) -> str:
    """Return the caption's words in lower case, joined by single spaces."""
    text = re.sub(r"--+|\.{2,}", " ", caption.translate(_PLAIN).lower())
    tokens = (token for token in _TOKEN.findall(text) if token not in _DROPPED)
    words = (_BRACKETS.get(token, _FUSED.get(token, token)) for token in tokens)
    return " ".join(_CLITIC.sub(r" \1", word) for word in words)


def tokenize_captions(captions: Iterable[str]) -> list[str]:
    """Apply `tokenize_caption` to several captions."""
    return [tokenize_caption(caption) for caption in captions]
