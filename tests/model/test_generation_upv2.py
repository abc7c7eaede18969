"""Captioning: the cache changes nothing, nor do padding, beams or where the image comes from."""

import copy
import math

import pytest
import torch
from transformers.cache_utils import DynamicCache

from tiny_models import TEXTS, pad_images, random_images
from transformers_upv2.model.caption_layout import training_layout
from transformers_upv2.model.generation_upv2 import UniPerceiverV2ForConditionalGeneration
from transformers_upv2.model.task_forward import prefix_mask, vocabulary_logits


@pytest.fixture
def captioner(model) -> UniPerceiverV2ForConditionalGeneration:
    captioner = UniPerceiverV2ForConditionalGeneration.from_model(model)
    with torch.no_grad():  # decided enough that captions differ
        captioner.model.likelihood.log_logit_scale["vocabulary"].fill_(math.log(100.0))
    return captioner


OPTIONS = {
    "greedy": {"max_new_tokens": 8},
    "beams": {"max_new_tokens": 7, "num_beams": 4, "num_return_sequences": 2},
}


@pytest.fixture
def images() -> dict[str, torch.Tensor]:
    sizes = [(64, 64), (32, 64), (64, 50)]
    return pad_images([random_images(1, *size, seed=i)[0] for i, size in enumerate(sizes)], 64, 64)


def generate(captioner, **kwargs):
    """Ids, and the scores that chose them."""
    output = captioner.generate(**kwargs, return_dict_in_generate=True, output_logits=True)
    return output.sequences, torch.stack(output.logits)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cache_equals_no_cache(captioner, images, options):
    ids, logits = generate(captioner, **images, **options, use_cache=True)
    other, other_logits = generate(captioner, **images, **options, use_cache=False)
    assert torch.equal(ids, other)
    torch.testing.assert_close(logits, other_logits, atol=1e-3, rtol=1e-5)  # at a scale of 100
    assert len(ids) == 3 * options.get("num_return_sequences", 1)
    assert (ids[:, 0] == 0).all()
    # and the images matter, by far more than the tolerance
    assert (logits[0, 0] - logits[0, -1]).abs().max() > 0.02


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_encoding_serves_as_well_as_pixels(captioner, images, options):
    ids, logits = generate(captioner, **images, **options)
    encoding = captioner.encode_image(**images)
    other, other_logits = generate(captioner, image_encoding=encoding, **options)
    assert torch.equal(ids, other)
    torch.testing.assert_close(logits, other_logits)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_batch_changes_no_caption(captioner, images, options):
    together, together_logits = generate(captioner, **images, **options)
    number, beams = options.get("num_return_sequences", 1), options.get("num_beams", 1)
    for index in range(3):
        height, width = (images["pixel_mask"][index].any(axis).sum() for axis in (1, 0))
        pixels = images["pixel_values"][index : index + 1, :, :height, :width]
        alone, logits = generate(captioner, pixel_values=pixels, **options)
        rows = together[index * number : (index + 1) * number, : alone.shape[1]]
        assert torch.equal(rows, alone)
        rows = together_logits[: len(logits), index * beams : (index + 1) * beams]
        torch.testing.assert_close(rows, logits, atol=1e-3, rtol=1e-5)


def test_left_padded_beginnings_equal_unpadded_ones(captioner, images):
    beginnings = [[0, 50, 60, 70], [0, 80], [0]]
    ids = torch.tensor([[1] * (4 - len(row)) + row for row in beginnings])
    mask = torch.tensor([[0] * (4 - len(row)) + [1] * len(row) for row in beginnings])
    padded, padded_logits = generate(captioner, input_ids=ids, attention_mask=mask, **images, max_new_tokens=5)
    encoding = captioner.encode_image(**images)
    for index, row in enumerate(beginnings):
        options = {"image_encoding": encoding[index], "max_new_tokens": 5}
        (alone,), logits = generate(captioner, input_ids=torch.tensor([row]), **options)
        assert torch.equal(padded[index, 4 : 4 + len(alone) - len(row)], alone[len(row) :])
        torch.testing.assert_close(padded_logits[: len(logits), index], logits[:, 0], atol=1e-3, rtol=1e-5)
    positional = captioner.generate(ids, attention_mask=mask, **images, max_new_tokens=5)
    assert torch.equal(positional, padded)


def test_steps_equal_the_slots_of_training(captioner, roberta_tokenizer):
    """What generate() asks at each step is what training asked at that slot."""
    model = captioner.model
    words = roberta_tokenizer(TEXTS[:1], return_tensors="pt")
    ids, mask = words["input_ids"], words["attention_mask"]
    encoding = model.encode_image(random_images(1))
    with torch.no_grad():
        layout = training_layout(ids, mask, model.text_encoder.position_ids(mask), model.config.mask_token_id)
        expected = vocabulary_logits(model, model.decode_caption(layout, encoding.tokens, prefix_mask(encoding)))
        cache = DynamicCache()
        for step in range(ids.shape[1] - 1):
            whole = captioner(ids[:, : step + 1], image_encoding=encoding).logits
            new = captioner(ids[:, step : step + 1], image_encoding=encoding, cache=cache).logits
            for logits in (whole, new):
                torch.testing.assert_close(logits[:, 0], expected[:, step], atol=1e-3, rtol=1e-5)
        # [SPE], the image and the words; no slot
        lengths = [cache.get_seq_length(layer) for layer in range(4)]
        assert lengths == [step + 1] * 2 + [encoding.tokens.shape[1] + 1 + step + 1] * 2


def test_one_image_serves_several_beginnings(captioner):
    encoding = captioner.encode_image(random_images(1))
    ids = torch.tensor([[0, 50], [0, 60], [0, 70]])
    together = captioner.generate(input_ids=ids, image_encoding=encoding, max_new_tokens=4)
    with torch.no_grad():
        logits = captioner(ids, image_encoding=encoding).logits
        for index in range(3):
            alone = captioner.generate(input_ids=ids[index : index + 1], image_encoding=encoding, max_new_tokens=4)
            assert torch.equal(together[index, : alone.shape[1]], alone[0])
            single = captioner(ids[index : index + 1], image_encoding=encoding).logits
            torch.testing.assert_close(logits[index], single[0], atol=1e-3, rtol=1e-5)


def test_other_numbers_of_images_and_beginnings_are_an_error(captioner):
    encoding = captioner.encode_image(random_images(2))
    ids = torch.tensor([[0], [0], [0]])
    message = "one image for all texts or one for each, got 2 images and 3 texts"
    with pytest.raises(ValueError, match=message):
        captioner.generate(input_ids=ids, image_encoding=encoding, max_new_tokens=2)
    with pytest.raises(ValueError, match=message):
        captioner(ids, image_encoding=encoding)
    with pytest.raises(ValueError, match=message):
        captioner(image_encoding=encoding, labels=torch.tensor([[0, 5, 2]] * 3))


def test_pixels_or_an_encoding_and_not_both(captioner):
    pixels = random_images(1)
    with pytest.raises(ValueError, match="got neither"):
        captioner.generate(max_new_tokens=2)
    with pytest.raises(ValueError, match="got both"):
        captioner.generate(pixel_values=pixels, image_encoding=captioner.encode_image(pixels))


def test_an_old_encoding_is_refused(captioner):
    encoding = captioner.encode_image(random_images(1))
    with torch.no_grad():
        captioner.model.spe_token.add_(0.1)
    with pytest.raises(ValueError, match="`image_encoding` must come from the present weights"):
        captioner.generate(image_encoding=encoding, max_new_tokens=2)
    encoding = captioner.encode_image(random_images(1))
    captioner.model.spe_token.data.add_(0.1)
    with pytest.raises(ValueError, match="`image_encoding` must come from the present weights"):
        captioner.generate(image_encoding=encoding, max_new_tokens=2)


def test_special_tokens_are_never_written_but_the_end_is(captioner):
    ids = captioner.generate(
        pixel_values=random_images(3), do_sample=True, temperature=100.0, num_return_sequences=8, max_new_tokens=12
    )
    known = set(captioner.model.vocabulary_ids().tolist())
    for row in ids.tolist():
        ended = row.index(2) if 2 in row else len(row)
        assert set(row[1:ended]) <= known
    with torch.no_grad():
        logits = captioner(image_encoding=captioner.encode_image(random_images(1))).logits
    assert logits.shape == (1, 1, captioner.config.vocab_size)
    lowest = (logits[0, 0] == torch.finfo(logits.dtype).min).nonzero().flatten().tolist()
    assert lowest == [0, 1, 3, captioner.config.vocab_size - 1]


def test_loss_of_labels_padded_either_way(captioner, roberta_tokenizer):
    words = roberta_tokenizer(TEXTS, padding=True, return_tensors="pt")
    pixels = random_images(3)
    with torch.no_grad():
        expected = captioner(pixel_values=pixels, labels=words["input_ids"]).loss
        labels = words["input_ids"].masked_fill(words["attention_mask"] == 0, -100)
        torch.testing.assert_close(captioner(pixel_values=pixels, labels=labels).loss, expected)
        # the mean over words, not over captions
        parts = [captioner(pixel_values=pixels[i : i + 1], labels=labels[i : i + 1]).loss for i in range(3)]
    counts = words["attention_mask"].sum(1) - 1
    torch.testing.assert_close((torch.stack(parts) * counts).sum() / counts.sum(), expected, atol=1e-4, rtol=1e-4)


def test_generated_captions_have_the_likelihood_that_the_loss_states(captioner):
    """Sampled logits and the training loss are two ways to the same number."""
    encoding = captioner.encode_image(random_images(1))
    output = captioner.generate(
        image_encoding=encoding, max_new_tokens=6, return_dict_in_generate=True, output_logits=True
    )
    ids = output.sequences
    logits = torch.stack(output.logits, dim=1).log_softmax(-1)
    chosen = logits.gather(2, ids[:, 1:, None])
    with torch.no_grad():
        loss = captioner(image_encoding=encoding, labels=ids).loss
    torch.testing.assert_close(loss, -chosen.mean(), atol=1e-4, rtol=1e-4)


def test_the_cache_has_its_old_name_as_well(captioner, images):
    with torch.no_grad():
        cache = captioner(**images, use_cache=True).cache
        texts = {"input_ids": torch.full((3, 1), 7), "attention_mask": torch.ones(3, 2, dtype=torch.long)}
        following = {**images, **texts}
        expected = captioner(**following, cache=copy.deepcopy(cache)).logits
        with pytest.warns(FutureWarning, match="`past_key_values` is deprecated"):
            logits = captioner(**following, past_key_values=copy.deepcopy(cache)).logits
        without = captioner(**following | {"input_ids": torch.tensor([[0, 7]] * 3)}).logits
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(logits, without, atol=1e-3, rtol=1e-5)


def test_sampling_depends_on_the_generators_seed_and_stops_at_the_length(captioner, images):
    def sample(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return captioner.generate(**images, do_sample=True, temperature=5.0, num_return_sequences=2, max_length=6)

    assert sample(0).shape == (6, 6)
    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))


def test_a_returned_cache_continues_the_caption(captioner, images):
    options = {"eos_token_id": -1, "pad_token_id": 1, "return_dict_in_generate": True, "output_logits": True}
    whole = captioner.generate(**images, max_new_tokens=5, **options)
    begun = captioner.generate(**images, max_new_tokens=3, **options)
    assert begun.cache.get_seq_length() == 3  # <s> and two words; the third is not read yet
    rest = captioner.generate(begun.sequences, cache=begun.cache, **images, max_new_tokens=2, **options)
    assert torch.equal(rest.sequences, whole.sequences)
    torch.testing.assert_close(
        torch.stack(begun.logits + rest.logits), torch.stack(whole.logits), atol=1e-3, rtol=1e-5
    )
    assert rest.cache.get_seq_length() == whole.cache.get_seq_length() == 5


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"cache_implementation": "static"}, "`cache_implementation` must be 'dynamic'.*got 'static'"),
        ({"cache_implementation": "paged"}, "`cache_implementation` must be 'dynamic'.*got 'paged'"),
        ({"guidance_scale": 1.5}, "`guidance_scale` must be 1, .*got 1.5. Leave it out"),
        ({"inputs_embeds": torch.zeros(3, 1, 32)}, "not used by the model: .'inputs_embeds'"),
        ({"prompt_lookup_num_tokens": 2}, "only supports .*ASSISTED_GENERATION"),
    ],
    ids=["cache", "paged", "guidance", "embeddings", "assisted"],
)
def test_what_captioning_cannot_do_is_refused(captioner, images, option, message):
    with pytest.raises(ValueError, match=message):
        captioner.generate(**images, max_new_tokens=2, **option)
