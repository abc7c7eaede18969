"""The index: exact search in any chunks and with FAISS, and files that changed."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transformers_upv2.model import image_index
from transformers_upv2.model.image_index import FORMAT, ImageIndex, file_stamp, list_images


def unit_vectors(number, size=16, seed=0):
    vectors = torch.randn(number, size, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


@pytest.fixture
def index():
    return ImageIndex([f"{i}.png" for i in range(500)], unit_vectors(500))


def test_search_finds_the_highest_cosines(index, monkeypatch):
    queries = unit_vectors(7, seed=1)
    scores, positions = index.search(queries, 10)
    cosines = queries @ index.embeddings.T
    expected = cosines.sort(dim=1, descending=True)
    assert torch.equal(positions, expected.indices[:, :10])
    torch.testing.assert_close(scores, expected.values[:, :10])
    monkeypatch.setattr(image_index, "MAX_SIMILARITIES", 1200)  # two queries at a time
    chunked = index.search(queries, 10)
    assert torch.equal(chunked[1], positions)
    torch.testing.assert_close(chunked[0], scores)
    assert index.search(queries, 9999)[0].shape == (7, 500)


def test_faiss_finds_the_same(index):
    pytest.importorskip("faiss")
    queries = unit_vectors(7, seed=1)
    for top_k in (1, 20, 9999):
        scores, positions = index.search(queries, top_k)
        other_scores, other_positions = index.search(queries, top_k, backend="faiss")
        assert torch.equal(other_positions, positions)
        torch.testing.assert_close(other_scores, scores)


def test_search_errors(index, monkeypatch):
    with pytest.raises(ValueError, match="`top_k` must be at least 1, got 0"):
        index.search(unit_vectors(1), 0)
    with pytest.raises(ValueError, match=r"`backend` must be one of \['torch', 'faiss'\], got 'annoy'"):
        index.search(unit_vectors(1), 1, "annoy")
    monkeypatch.setattr(image_index.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"`backend='faiss'` needs FAISS. Install .*\[retrieval\]"):
        index.search(unit_vectors(1), 1, "faiss")


def test_changed_and_missing_files_are_noticed(tmp_path):
    names = [str(tmp_path / name) for name in ("a", "b", "c")]
    for name in names:
        Path(name).write_text("image")
    index = ImageIndex(names, unit_vectors(3), [file_stamp(name) for name in names], weights="digest")
    index.save(tmp_path / "index.safetensors")
    loaded = ImageIndex.load(tmp_path / "index.safetensors")
    assert loaded.names == names
    assert torch.equal(loaded.embeddings, index.embeddings)
    assert loaded.weights == "digest"
    assert loaded.outdated() == {}
    os.utime(names[0], ns=(1, 1))
    Path(names[1]).unlink()
    assert loaded.outdated() == {names[0]: "changed", names[1]: "missing"}
    assert ImageIndex(names, unit_vectors(3)).outdated() == {}  # these are no files


def test_other_files_are_refused(tmp_path):
    for metadata in (None, {"format": "image_encoding"}, {"format": FORMAT, "names": json.dumps(["a"])}):
        save_file({"embeddings": torch.zeros(1, 2)}, tmp_path / "x.safetensors", metadata=metadata)
        with pytest.raises(ValueError, match=r"a file written by `ImageIndex.save`, got '.*x.safetensors'"):
            ImageIndex.load(tmp_path / "x.safetensors")


def test_a_missing_folder_is_made(tmp_path):
    ImageIndex(["a"], unit_vectors(1)).save(tmp_path / "new" / "x.safetensors")
    assert len(ImageIndex.load(tmp_path / "new" / "x.safetensors")) == 1


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="`names` and `embeddings` must be equally many, got 1 and 2"):
        ImageIndex(["a"], torch.zeros(2, 3))
    with pytest.raises(ValueError, match="`names` and `stamps` must be equally many, got 1 and 2"):
        ImageIndex(["a"], torch.zeros(1, 3), [(0, 0), (0, 0)])


def test_listed_files_are_taken_once_in_their_order():
    assert list_images(["b.png", Path("a.png"), "b.png"]) == [Path("b.png"), Path("a.png")]


@pytest.mark.slow
def test_only_what_pil_decodes_is_listed_of_a_folder(tmp_path):
    wanted = ["a.JPG", "b.mpo", "deep/c.webp"]
    for name in (*wanted, "paper.pdf", "film.mpeg", "note.txt", "none", "._a.JPG", ".thumbnails/a.png", "data.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [tmp_path / name for name in wanted]


def test_tens_of_thousands(tmp_path):
    index = ImageIndex([f"folder/image_{i:06d}.jpg" for i in range(50_000)], unit_vectors(50_000, 256))
    index.save(tmp_path / "index.safetensors")
    index = ImageIndex.load(tmp_path / "index.safetensors")
    queries = index.embeddings[::5000]
    scores, positions = index.search(queries, 5)
    assert positions[:, 0].tolist() == list(range(0, 50_000, 5000))
    torch.testing.assert_close(scores[:, 0], torch.ones(10))
