"""Split captions into words as the COCO caption evaluation does, without Java.

The field's scores are computed on the output of Stanford's PTBTokenizer 3.4.1, lower-cased and without
punctuation (https://github.com/tylin/coco-caption). As there, the rule with the longest match makes the next token.
The rules were found by comparing outputs on captions with every kind of punctuation
(``scripts/make_ptb_fixture.py``); rare constructs of prose may differ.
"""

import re
from collections.abc import Iterable, Iterator

_ABBREVIATIONS = r"""
    mr mrs ms messrs mme mlle dr prof rev hon gen sen sens rep reps gov govs lt lieut col sgt capt cpl maj cmdr adm
    brig pvt supt supts atty attys det pres st jr sr esq ph\.d
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
    ave blvd rd ct ft mt sq bldg ste univ dept assn assts asst co inc ltd corp bros cos plc mfg intl natl invt
    etc vs al est ext tel cf adj seq
    ala ariz calif colo conn fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wyo
"""
_STATES = "Ark Del Ill La Mass Miss Ore Pa Tex Wash"  # in lower case these are words
_BEFORE_NUMBERS = "no nos pp fig figs ca op"
_NO = r"\W_\u00b2\u00b3\u00b9\u00bc-\u00be"  # Python counts small digits and fractions as letters
_L = rf"(?:[^\d{_NO}]|[\u0300-\u036f])"  # a letter or an accent by itself
_A = rf"(?:[^{_NO}]|[\u0300-\u036f])"  # a letter or digit
_Q = r"['\u2019]"  # an apostrophe
_APOSTROPHE_WORDS = "'n(?!') 'em 'cause ol' d'ye c'mon ma'am ne'er nor'easter xi'an hawai'i".replace("'", _Q)


def _any_of(words: str) -> str:
    return "(?:" + "|".join(words.split()) + ")"


_END = rf"(?!{_A})"
_FLAGS = re.VERBOSE | re.IGNORECASE
# What stands in a group counts for the length of the match, but belongs to the next token.
_RULES = [
    *(
        re.compile(rule, _FLAGS)
        for rule in (
            rf"can(not){_END} | g(?:on|ot)([nt]a){_END} | wan(na){_END} | (?:le|gi)m(me){_END}",
            # words, also those that a missing space joined; then their clitics
            rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*",
            rf"{_A}+(?:[-_]{_A}+)*",
            rf"{_A}+(?:-{_A}+)*(?:\\?/{_A}+(?:-{_A}+)*){{1,2}}",
            rf"{_any_of(_APOSTROPHE_WORDS)}{_END} | {_Q}n{_Q} | y{_Q} | [dlo]{_Q}{_A}+",
            rf"{_L}+(n{_Q}t{_END}) | n{_Q}t{_END}",
            rf"'(?:s|m|d|ll|re|ve)(?!{_L}) | \u2019(?:s|m|d|ll|re|ve)",
            rf"'t(is|was){_END}",
            # abbreviations
            rf"(?:{_L}\.)+ | {_any_of(_ABBREVIATIONS)}\. | {_any_of(_BEFORE_NUMBERS)}\.(\s*\d)",
            # numbers, amounts and years
            r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)",
            r"\d+[ \u00a0]\d+/\d+ | [\u00bc\u00bd\u00be]",
            r"\(\d{3}\)[ ]\d{3}-\d{4}",
            rf"{_Q}\d\ds?(?!['-]|{_A})",
            r"(?:us|a|c)\$ | c\+\+ | [cf]\#",
            # addresses, names of the web, tags, faces
            r"https?://\S+ | www\.\S+",
            rf"{_A}+(?:[-._/]{_A}+)*\.(?:x|jpg|gif|png|com|net|org|edu){_END}",
            r"[^\s\"<>|()]+@[^\s\"<>|().]+(?:\.[^\s\"<>|().]+)*",
            r"[@\#][a-z_]\w*",
            r"&(?:amp|lt|gt|quot|nbsp|apos); | </?[a-z!?][^<>]*>",
            r"[:;=]-?[()dp](?!\w)",
            # marks
            r"\*+ | \#+ | _+ | [!?]+ | \.{2,} | --+ | <<? | >>? | '' | \S",
        )
    ),
    re.compile(rf"[A-Z]+(?:[+&][A-Z]+)+{_END} | {_any_of(_STATES)}\.", re.VERBOSE),
]
_RENAMED = {
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": '"',
    "&apos;": "'",
    "&nbsp;": "",
    "n\u2019t": "n't",
    **{f"\u2019{clitic}": f"'{clitic}" for clitic in ("s", "m", "d", "ll", "re", "ve")},
    "\u00a2": "cents",
    "\u00a3": "#",
    "\u20ac": "$",
    "\u00bc": "1/4",
    "\u00bd": "1/2",
    "\u00be": "3/4",
}
_BRACKETS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
)
_DROPPED = frozenset([*"'`\".?!,:;-\u2018\u2019\u201c\u201d\u00ab\u00bb\u2013\u2014\u2026", "", "''", "--", "..."])


def tokenize_caption(caption: str) -> str:
    """Return the caption's words in lower case, joined by single spaces."""
    words = (_RENAMED.get(token, token) for token in _split(caption))
    return " ".join(word.translate(_BRACKETS) for word in words if word not in _DROPPED)


def tokenize_captions(captions: Iterable[str]) -> list[str]:
    """Apply `tokenize_caption` to several captions."""
    return [tokenize_caption(caption) for caption in captions]


def _split(text: str) -> Iterator[str]:
    """Yield the tokens in lower case; runs of dots and dashes all look alike."""
    text = re.sub(r"[^\0-\uffff]", " ", text)  # emojis
    position = 0
    while position < len(text):
        matches = [match for rule in _RULES if (match := rule.match(text, position))]
        if not matches:  # white space
            position += 1
            continue
        longest = max(matches, key=re.Match.end)
        end = longest.start(longest.lastindex) if longest.lastindex else longest.end()
        token = text[position:end].lower().replace(" ", "\u00a0")
        yield re.sub(r"^(?:-{2,}|\.{2,})$", "...", token)
        position = end
