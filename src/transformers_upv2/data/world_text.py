"""The words of the demo world: captions of its scenes and a small text corpus.

All words come from one small vocabulary. The sentences are redundant on purpose: most words can be
told from the rest of the sentence, so that a masked word is a fair question.
"""

import re
from collections.abc import Iterator
from itertools import pairwise, permutations, product
from zlib import crc32

import numpy as np

from transformers_upv2.data.world_objects import CLASS_NAMES, COLORS, DIGIT_NAMES
from transformers_upv2.data.world_scenes import PlacedObject, Scene

POSITION_PHRASES = {
    ("top", "left"): ("at the top left", "in the top left"),
    ("top", "middle"): ("at the top", "in the top middle"),
    ("top", "right"): ("at the top right", "in the top right"),
    ("middle", "left"): ("on the left", "at the left"),
    ("middle", "middle"): ("in the middle", "in the center"),
    ("middle", "right"): ("on the right", "at the right"),
    ("bottom", "left"): ("at the bottom left", "in the bottom left"),
    ("bottom", "middle"): ("at the bottom", "in the bottom middle"),
    ("bottom", "right"): ("at the bottom right", "in the bottom right"),
}
CAPTION_FORMS = (("", 0), ("there is", 0), ("the picture shows", 0), ("here is", 1), ("we see", 1))
CAPTIONED_OBJECTS = 2

HELD_OUT_PARTS = {"val": 0, "test": 1}  # of twenty; all others are for training
NUM_PARTS = 20
FACT_SHARE, SCENE_SHARE = 0.25, 0.15  # of the corpus' lines


def scene_signature(scene: Scene) -> frozenset[tuple[str, str, tuple[str, str]]]:
    """Return what the captions state: (color, class, position) of the largest objects."""
    return frozenset(
        (item.drawn.color_name, item.drawn.class_name, item.position) for item in scene.objects[:CAPTIONED_OBJECTS]
    )


def scene_captions(scene: Scene) -> list[str]:
    """Return five captions that state the largest objects, in order of size, and where they are."""
    captions = []
    for opening, wording in CAPTION_FORMS:
        things = [describe(item, wording) for item in scene.objects[:CAPTIONED_OBJECTS]]
        text = f"{opening} {' and '.join(things)}".strip()
        captions.append(text)
    return captions


def describe(item: PlacedObject, wording: int = 0) -> str:
    """Return "a star in red at the top left", or the same in the other wording.

    The class comes first: which object is meant must be chosen at the first word, and a model learns to choose among
    words that differ. Its colors differ only when it can tell them, and cannot be told while it chooses by them.
    """
    phrase = POSITION_PHRASES[item.position][wording]
    return f"a {item.drawn.class_name} in {item.drawn.color_name} {phrase}"


def mend_articles(text: str) -> str:
    """Write "an" before a vowel's sound."""
    return re.sub(r"\ba (?=orange)", "an ", text)


def scene_sentence(scene: Scene) -> str:
    """Return a sentence on the two largest objects of a scene that tells their colors twice."""
    first, second = scene.objects[:2]
    return (
        f"there is {describe(first)} and {describe(second)} , "
        f"the {first.drawn.class_name} is {first.drawn.color_name} "
        f"and the {second.drawn.class_name} is {second.drawn.color_name} ."
    )


def number_facts() -> Iterator[str]:
    """Yield all sentences on numbers."""
    numbers = list(enumerate(DIGIT_NAMES))
    for (i, a), (j, b) in product(numbers, numbers):
        if i + j < len(numbers):
            yield f"{a} plus {b} is {DIGIT_NAMES[i + j]} ."
            yield f"{DIGIT_NAMES[i + j]} minus {b} is {a} ."
        if i > j:
            yield f"{a} is more than {b} , so {b} is less than {a} ."
    for a, b in pairwise(DIGIT_NAMES):
        yield f"after {a} comes {b} ."
        yield f"before {b} comes {a} ."
    for a, b, c in zip(DIGIT_NAMES, DIGIT_NAMES[1:], DIGIT_NAMES[2:]):
        yield f"we count up , {a} , {b} , {c} ."
        yield f"we count down , {c} , {b} , {a} ."


def shape_facts() -> Iterator[str]:
    """Yield all sentences on shapes."""
    corners = {"circle": "no", "triangle": "three", "square": "four"}
    for shape, number in corners.items():
        yield f"a {shape} has {number} corners ."
    yield "a star has five points ."
    yield "a square has four corners , one more than a triangle ."
    yield "a triangle has three corners , one less than a square ."


def color_sentences() -> Iterator[str]:
    """Yield sentences that tell the colors of two things twice."""
    for (a, b), (c, d) in product(permutations(CLASS_NAMES, 2), permutations(COLORS, 2)):
        yield (f"the {a} is {c} and the {b} is {d} , so the {c} thing is the {a} and the {d} thing is the {b} .")


def place_sentences() -> Iterator[str]:
    """Yield sentences on how two things lie to each other, told from both sides."""
    relations = (
        ("left of", "right of"),
        ("right of", "left of"),
        ("above", "below"),
        ("below", "above"),
    )
    for (a, b), (c, d), (one_way, other_way) in product(
        permutations(CLASS_NAMES, 2), permutations(COLORS, 2), relations
    ):
        yield (f"the {c} {a} is {one_way} the {d} {b} , so the {d} {b} is {other_way} the {c} {a} .")


def size_sentences() -> Iterator[str]:
    """Yield sentences on which of two things is larger, told from both sides."""
    for a, b in permutations(CLASS_NAMES, 2):
        yield f"the {a} is larger than the {b} , so the {b} is smaller than the {a} ."
        yield f"the {a} is smaller than the {b} , so the {b} is larger than the {a} ."


def counting_sentences() -> Iterator[str]:
    """Yield sentences that count two or three things and name them twice."""
    for a, b in permutations(CLASS_NAMES, 2):
        yield f"a {a} and a {b} are two things , the {a} and the {b} ."
    for a, b, c in permutations(CLASS_NAMES, 3):
        yield (f"a {a} , a {b} and a {c} are three things , the {a} , the {b} and the {c} .")


def position_sentences() -> Iterator[str]:
    """Yield sentences that tell class, color and position of one thing twice."""
    for name, color, (phrase, _) in product(CLASS_NAMES, COLORS, POSITION_PHRASES.values()):
        yield f"there is a {color} {name} {phrase} , so the {name} {phrase} is {color} ."


FACTS = (*number_facts(), *shape_facts())  # the same in all splits: they are to be known
DESCRIPTIONS = tuple(  # every split has its own
    tuple(mend_articles(sentence) for sentence in sentences())
    for sentences in (
        color_sentences,
        place_sentences,
        size_sentences,
        counting_sentences,
        position_sentences,
    )
)


def descriptions_of(split: str) -> list[list[str]]:
    """Return the described sentences of a split, one list for each kind of sentence."""

    def belongs(sentence: str) -> bool:
        part = crc32(sentence.encode()) % NUM_PARTS
        if split in HELD_OUT_PARTS:
            return part == HELD_OUT_PARTS[split]
        return part not in HELD_OUT_PARTS.values()

    return [[sentence for sentence in kind if belongs(sentence)] for kind in DESCRIPTIONS]


def draw_sentence(descriptions: list[list[str]], scene_sentences: list[str], rng: np.random.Generator) -> str:
    """Draw one line of the corpus.

    Args:
        descriptions: From ``descriptions_of`` the split.
        scene_sentences: A sentence on each scene of the split.
        rng: Chooses the kind of sentence, then the sentence.
    """
    kind = rng.random()
    if kind < FACT_SHARE:
        sentences: list[str] | tuple[str, ...] = FACTS
    elif kind < FACT_SHARE + SCENE_SHARE:
        sentences = scene_sentences
    else:
        sentences = descriptions[rng.integers(len(descriptions))]
    return sentences[rng.integers(len(sentences))]
