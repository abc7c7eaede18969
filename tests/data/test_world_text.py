"""Captions, corpus and tokenizer of the demo world."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from transformers import RobertaTokenizer

from transformers_upv2.data.world_objects import CLASS_NAMES, COLORS
from transformers_upv2.data.world_text import (
    DESCRIPTIONS,
    FACT_SHARE,
    FACTS,
    POSITION_PHRASES,
    SCENE_SHARE,
    descriptions_of,
)
from transformers_upv2.data.world_tokenizer import train_tokenizer

PHRASES = {phrase: position for position, pair in POSITION_PHRASES.items() for phrase in pair}
THING = re.compile(
    rf"a ({'|'.join(CLASS_NAMES)}) in ({'|'.join(COLORS)}) "
    rf"({'|'.join(sorted(PHRASES, key=len, reverse=True))})"
)


def read_caption(caption):
    """Take a caption apart again."""
    return [(color, name, PHRASES[phrase]) for name, color, phrase in THING.findall(caption)]


def expected_triples(example, class_names):
    """What a caption must state, from the boxes alone."""
    triples = []
    annotations = sorted(example["annotations"], key=lambda a: -a["bbox"][2] * a["bbox"][3])
    for annotation in annotations[:2]:
        left, top, width, height = annotation["bbox"]
        row = ("top", "middle", "bottom")[int((top + height / 2) / 128 * 3)]
        column = ("left", "middle", "right")[int((left + width / 2) / 128 * 3)]
        name = class_names[annotation["category_id"]]
        triples.append((annotation["color"], name, (row, column)))
    return triples


def test_captions_state_the_largest_objects_in_order_and_where_they_are(world):
    for reader in (world.train, world.val, world.test):
        detection, captioning = reader["detection"], reader["captioning"]
        assert len(detection) == len(captioning)
        for index in range(len(detection)):
            scene, captioned = detection[index], captioning[index]
            assert scene["image_id"] == captioned["image_id"]
            expected = expected_triples(scene, world.class_names)
            assert len(set(captioned["captions"])) == 5
            for caption in captioned["captions"]:
                assert read_caption(caption) == expected
                assert len(caption.split()) <= 20


def test_captions_identify_their_scene(world):
    for reader in (world.train, world.val, world.test):
        captions = [reader["retrieval"][i]["captions"] for i in range(len(reader["retrieval"]))]
        strings = [caption for five in captions for caption in five]
        assert len(set(strings)) == len(strings)
        assert len({frozenset(read_caption(five[0])) for five in captions}) == len(captions)


def test_descriptions_are_split_and_facts_are_shared():
    train, val, test = (
        {sentence for kind in descriptions_of(split) for sentence in kind} for split in ("train", "val", "test")
    )
    assert train.isdisjoint(val | test)
    assert val.isdisjoint(test)
    assert len(train | val | test) == sum(len(kind) for kind in DESCRIPTIONS)
    assert "two plus three is five ." in FACTS


def restored_share(lines, rng):
    """How many of 15 % masked words the most probable sentence of the language restores.

    A sentence on a scene is judged by a bound: words of positions count as lost, the others as
    restored where the sentence repeats them.
    """
    by_length = defaultdict(list)
    kinds = [(FACTS, FACT_SHARE)]
    kinds += [(kind, (1 - FACT_SHARE - SCENE_SHARE) / len(DESCRIPTIONS)) for kind in DESCRIPTIONS]
    for kind, share in kinds:
        for sentence in kind:
            words = sentence.split()
            by_length[len(words)].append((words, share / len(kind)))
    tables = {
        length: (np.array([words for words, _ in rows]), np.array([weight for _, weight in rows]))
        for length, rows in by_length.items()
    }
    restored = []
    for line in lines:
        words = np.array(line.split())
        masked = rng.random(len(words)) < 0.15
        phrase_words = {word for phrase in PHRASES for word in phrase.split()} - {"on"}
        is_scene = line.startswith("there is") and line.count(" is ") == 3
        sentences, weights = tables.get(len(words), (np.empty((0, len(words)), "U1"), None))
        fits = (sentences[:, ~masked] == words[~masked]).all(axis=1)
        for position in np.flatnonzero(masked):
            word = words[position]
            if is_scene:
                restored.append(
                    word not in phrase_words and (word not in (*CLASS_NAMES, *COLORS) or word in words[~masked])
                )
                continue
            votes = Counter()
            for candidate, weight in zip(sentences[fits, position], weights[fits]):
                votes[candidate] += weight
            restored.append(votes.most_common(1)[0][0] == word)
    return np.mean(restored)


def test_most_masked_words_can_be_told_from_the_rest(world):
    corpus = world.train["language_modeling"]
    lines = [corpus[i]["text"] for i in range(200)]
    assert restored_share(lines, np.random.default_rng(0)) >= 0.8


def test_corpus_is_mixed_and_ends_in_full_stops(world):
    corpus = world.train["language_modeling"]
    lines = [corpus[i]["text"] for i in range(len(corpus))]
    assert np.mean([line in FACTS for line in lines]) == pytest.approx(FACT_SHARE, abs=0.08)
    assert all(line.endswith(" .") for line in lines)
    assert not any(re.search(r"\ba orange|\ban (?!orange)", line) for line in lines)


def test_tokenizer_has_robertas_ids_and_one_token_a_word(world):
    tokenizer = RobertaTokenizer.from_pretrained(world.paths.tokenizer)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 1, 2, 3, len(tokenizer) - 1]
    assert 256 + 5 < len(tokenizer) <= 512
    ids = tokenizer.encode("a red star")
    assert (ids[0], ids[-1], len(ids)) == (0, 2, 5)
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a red star"
    words = {word for kind in (FACTS, *DESCRIPTIONS) for line in kind for word in line.split()}
    words |= {word for caption in world.test["captioning"][0]["captions"] for word in caption.split()}
    assert all(len(tokenizer.encode(word)) == 3 for word in words)


def test_tokenizer_reads_any_text():
    tokenizer = train_tokenizer(["a red star and a red heart"])
    assert tokenizer.decode(tokenizer.encode(" Grüße 42!"), skip_special_tokens=True) == " Grüße 42!"
    assert train_tokenizer(["a red star"]).get_vocab() == train_tokenizer(["a red star"]).get_vocab()
