"""ImageEncoding counts images: select, join, repeat, cast, save; what was decoded comes along."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tiny_models import pad_images, random_images
from transformers_upv2.model.image_encoding import ImageEncoding


@pytest.fixture
def encoding(session_model) -> ImageEncoding:
    with torch.no_grad():
        encoding = session_model.encode_image(random_images(3), keep_mask_features=True)
        session_model.model.decode_image(encoding, "image")
    return encoding


def assert_equal(first: ImageEncoding, second: ImageEncoding) -> None:
    assert first.fingerprint == second.fingerprint
    assert first._tensors().keys() == second._tensors().keys()
    for name, values in first._tensors().items():
        assert torch.equal(values, second._tensors()[name]), name


def test_selection_keeps_the_batch_dimension(encoding):
    assert len(encoding) == 3
    assert len(encoding[1]) == len(encoding[-1]) == 1
    assert torch.equal(encoding[-1].boxes, encoding.boxes[2:])
    assert torch.equal(encoding[1:].decoded["image"], encoding.decoded["image"][1:])
    assert torch.equal(encoding[torch.tensor([2, 0])].tokens, encoding.tokens[[2, 0]])
    assert [torch.equal(one.tokens[0], encoding.tokens[index]) for index, one in enumerate(encoding)] == [True] * 3
    for number in (np.int64(1), torch.tensor(1)):
        assert torch.equal(encoding[number].tokens, encoding.tokens[1:2])
    assert torch.equal(encoding[[2, 0]].tokens, encoding.tokens[[2, 0]])
    with pytest.raises(TypeError, match="integer"):
        encoding["tokens"]
    with pytest.raises(IndexError, match=r"`index` must be in \[-3, 3\), got 3"):
        encoding[3]


def test_parts_joined_are_the_whole(encoding):
    assert_equal(ImageEncoding.cat([encoding[0], encoding[1:]]), encoding)
    assert_equal(ImageEncoding.cat(list(encoding)), encoding)


def test_joining_keeps_what_all_have_decoded(encoding, session_model):
    other = session_model.encode_image(random_images(2, seed=5), keep_mask_features=True)
    joined = ImageEncoding.cat([encoding, other])
    assert len(joined) == 5
    assert not joined.decoded


def test_joining_refuses_what_does_not_fit(encoding, session_model):
    wide = session_model.encode_image(random_images(1, 64, 96))
    with pytest.raises(ValueError, match=r"Encodings must have one \(tokens, D\).* got \[\(12, 32\), \(14, 32\)\]"):
        ImageEncoding.cat([encoding, wide])
    other = encoding[0]
    other.fingerprint = 5
    with pytest.raises(ValueError, match="Encodings must come from one state of the weights"):
        ImageEncoding.cat([encoding, other])


def test_repeats_each_image_in_place(encoding):
    repeated = encoding.repeat_interleave(2)
    assert_equal(repeated[::2], encoding)
    assert_equal(repeated[1::2], encoding)


def test_casting_keeps_boxes_and_sizes(encoding):
    cast = encoding.to(dtype=torch.bfloat16)
    assert cast.tokens.dtype == cast.mask_features.dtype == cast.decoded["image"].dtype == torch.bfloat16
    assert torch.equal(cast.boxes, encoding.boxes)
    assert cast.boxes.dtype == torch.float32
    assert cast.token_mask.dtype == torch.bool
    assert torch.equal(cast.image_sizes, encoding.image_sizes)
    assert encoding.to("meta").boxes.device.type == "meta"


def test_detaching_cuts_the_graph(session_model):
    encoding = session_model.encode_image(random_images(1))
    assert encoding.tokens.requires_grad
    detached = encoding.detach()
    assert not any(values.requires_grad for values in detached._tensors().values())


def test_round_trip_through_a_file(encoding, session_model, tmp_path):
    encoding.save(tmp_path / "a.safetensors")
    loaded = ImageEncoding.load(tmp_path / "a.safetensors")
    for name, values in encoding._tensors().items():
        assert torch.equal(values, loaded._tensors()[name]), name
    # of unknown origin: no state of the weights is demanded
    assert loaded.fingerprint is None
    session_model.model.check_encoding(loaded)
    loaded.decoded.clear()
    with torch.no_grad():
        again = session_model.model.decode_image(loaded, "image")
    torch.testing.assert_close(again, encoding.decoded["image"])


def test_a_selection_can_be_saved(encoding, tmp_path):
    encoding[1:2].save(tmp_path / "one.safetensors")
    assert torch.equal(ImageEncoding.load(tmp_path / "one.safetensors").tokens, encoding.tokens[1:2])


def test_another_file_is_refused(tmp_path):
    save_file({"tokens": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b.safetensors must be a file written by `ImageEncoding.save`"):
        ImageEncoding.load(tmp_path / "b.safetensors")


def test_it_is_decoded_once_per_route(model):
    encoding = model.encode_image(**pad_images(list(random_images(2)), 64, 64))
    calls = []
    model.model.decoder.register_forward_hook(lambda *_: calls.append(1))
    first = model.model.decode_image(encoding, "image")
    assert model.model.decode_image(encoding, "image") is first
    assert len(calls) == 1
    other = model.model.decode_image(encoding, "caption_image")
    assert len(calls) == 2
    assert not torch.allclose(first, other)


def test_comparing_answers_instead_of_failing(encoding):
    assert encoding == encoding
    assert encoding != encoding[:]
