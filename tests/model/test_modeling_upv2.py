"""The base model: texts, candidates, captions that do not look ahead, errors that say what to do."""

import pytest
import torch

from tiny_models import TEXTS, pad_images, random_images, tiny_config
from transformers_upv2.model import attention
from transformers_upv2.model.caption_layout import training_layout
from transformers_upv2.model.image_encoder import image_sizes
from transformers_upv2.model.modeling_tasks_upv2 import (
    UniPerceiverV2ForImageClassification,
    UniPerceiverV2ForObjectDetection,
)
from transformers_upv2.model.modeling_upv2 import UniPerceiverV2Model
from transformers_upv2.model.task_forward import prefix_mask


@pytest.fixture
def base(model) -> UniPerceiverV2Model:
    return model.model


@pytest.fixture
def words(roberta_tokenizer) -> dict[str, torch.Tensor]:
    batch = roberta_tokenizer(TEXTS, padding=True, return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


# --- captions do not look ahead ----------------------------------------------------------------


def run_caption(base, encoding, words, ids) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots, and the decoder's states of everything before them."""
    states = []
    hook = base.decoder.register_forward_hook(lambda _, __, output: states.append(output))
    positions = base.text_encoder.position_ids(words["attention_mask"])
    layout = training_layout(ids, words["attention_mask"], positions, base.config.mask_token_id)
    with torch.no_grad():
        slots = base.decode_caption(layout, encoding.tokens, prefix_mask(encoding))
    hook.remove()
    return slots, states[0][:, : -slots.shape[1]]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_changed_word_leaves_earlier_slots_and_the_image_exactly_equal(base, words, implementation):
    base.set_attn_implementation(implementation)
    encoding = base.encode_image(random_images(3))
    ids = words["input_ids"]
    prefix = encoding.tokens.shape[1] + 1
    slots, before = run_caption(base, encoding, words, ids)
    for column in range(1, ids.shape[1] - 1):  # word w_column; slot i (from 0) predicts w_(i + 1)
        changed = ids.clone()
        changed[:, column] = (ids[:, column] + 57) % 300 + 5
        other, other_before = run_caption(base, encoding, words, changed)
        assert torch.equal(other[:, :column], slots[:, :column])
        assert torch.equal(other_before[:, : prefix + column], before[:, : prefix + column])
        real = words["attention_mask"][:, column].bool()
        assert ((other[real, column] - slots[real, column]).abs().amax(-1) > 1e-6).all()


def test_slots_see_the_image_and_never_each_other(base, words):
    encoding = base.encode_image(random_images(3))
    slots, _ = run_caption(base, encoding, words, words["input_ids"])
    other, _ = run_caption(base, encoding[torch.tensor([1, 2, 0])], words, words["input_ids"])
    assert ((slots - other).abs().amax(-1) > 1e-6).all()
    # a shorter caption has the same slots where both have one
    short = {name: values[:, :4] for name, values in words.items()}
    fewer, _ = run_caption(base, encoding, short, short["input_ids"])
    torch.testing.assert_close(fewer, slots[:, :3], atol=1e-5, rtol=1e-5)


# --- texts and candidates ----------------------------------------------------------------------


def test_padding_and_batch_change_no_text(base, words):
    with torch.no_grad():
        together = base.get_text_features(**words)
        for index, mask in enumerate(words["attention_mask"]):
            ids = words["input_ids"][index, mask.bool()][None]
            alone = base.get_text_features(ids)  # without a mask: all real
            torch.testing.assert_close(alone.pooler_output[0], together.pooler_output[index], atol=1e-5, rtol=1e-5)
            hidden = together.last_hidden_state[index, : ids.shape[1] + 1]
            torch.testing.assert_close(alone.last_hidden_state[0], hidden, atol=1e-5, rtol=1e-5)


def test_padding_tokens_themselves_change_nothing(base, words):
    with torch.no_grad():
        first = base.get_text_features(**words).pooler_output
        dirty = words["input_ids"].masked_fill(words["attention_mask"] == 0, 77)
        torch.testing.assert_close(base.get_text_features(dirty, words["attention_mask"]).pooler_output, first)


def test_vocabulary_leaves_out_exactly_four_special_tokens(base, roberta_tokenizer):
    missing = set(range(base.config.vocab_size)) - set(base.vocabulary_ids().tolist())
    names = ("bos", "pad", "unk", "mask")
    assert missing == {getattr(roberta_tokenizer, f"{name}_token_id") for name in names}
    assert roberta_tokenizer.eos_token_id in base.vocabulary_ids()
    assert base.vocabulary_ids().diff().min() > 0


def test_a_word_is_encoded_from_its_id_between_begin_and_end(base):
    with torch.no_grad():
        encoded = base.encode_vocabulary(torch.tensor([9, 200]))
        ids = torch.tensor([[0, 9, 2], [0, 200, 2]])
        expected = base.decode_text(ids, torch.ones_like(ids), "vocabulary")[:, 0]
    torch.testing.assert_close(encoded, expected)


def test_candidates_in_chunks_equal_those_in_one_pass(base, words, monkeypatch):
    with torch.no_grad():
        whole = base.encode_candidates(**words)
        monkeypatch.setattr("transformers_upv2.model.candidate_encoding.CANDIDATE_CHUNK", 2)
        torch.testing.assert_close(base.encode_candidates(**words), whole, atol=1e-5, rtol=1e-5)
        other = base.encode_candidates(**words, route="vocabulary")
    assert not torch.allclose(other, whole)


class Calls:
    """Counts how often g runs."""

    def __init__(self, base: UniPerceiverV2Model) -> None:
        self.number = 0
        base.decoder.register_forward_hook(self)

    def __call__(self, *_: object) -> None:
        self.number += 1


def test_candidates_are_encoded_once_and_again_after_a_step(base):
    calls = Calls(base)
    first = base.label_candidates("detection")
    assert torch.equal(base.label_candidates("detection"), first)
    words = base.vocabulary_candidates()
    assert base.vocabulary_candidates() is words
    assert calls.number == 2
    assert not first.requires_grad
    optimizer = torch.optim.SGD(base.parameters(), lr=0.1)
    base.label_candidates("classification")  # the same names in another order
    assert calls.number == 2
    base.spe_token.grad = torch.randn_like(base.spe_token)
    optimizer.step()  # in place, no new tensor
    again = base.label_candidates("detection")
    assert calls.number == 3
    assert not torch.allclose(again, first)


def test_training_never_uses_kept_candidates(base):
    kept, kept_words = base.label_candidates("detection"), base.vocabulary_candidates()
    base.train()
    for layer in base.decoder.layers:
        layer.drop_path = 0.9
    trained = base.label_candidates("detection")
    assert trained.requires_grad
    assert not torch.allclose(trained, kept)
    assert base.vocabulary_candidates().requires_grad
    base.eval()
    # and what training encoded is not kept
    torch.testing.assert_close(base.label_candidates("detection"), kept)
    torch.testing.assert_close(base.vocabulary_candidates(), kept_words)


def test_unknown_label_set_is_an_error(base):
    with pytest.raises(ValueError, match=r"must hold the label set 'dogs', got \['classification', 'detection'\]"):
        base.label_candidates("dogs")


# --- encodings ---------------------------------------------------------------------------------


def test_features_from_an_encoding_equal_those_from_pixels(base):
    pixels = random_images(2)
    with torch.no_grad():
        expected = base(pixel_values=pixels)
        output = base(image_encoding=base.encode_image(pixels))
    torch.testing.assert_close(output.pooler_output, expected.pooler_output)
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state)
    assert output.pooler_output.norm(dim=1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("change", ["step", "load", "cast"])
def test_an_encoding_is_refused_after_the_weights_changed(base, change):
    encoding = base.encode_image(random_images(1))
    base.decode_image(encoding, "image")
    if change == "step":
        with torch.no_grad():
            base.image_encoder.grid_type.add_(1e-3)
    elif change == "load":
        base.load_state_dict(base.state_dict())
    else:
        base.to(torch.float64)
    with pytest.raises(ValueError, match=r"`image_encoding` must come from the present weights.*`encode_image` again"):
        base.decode_image(encoding, "image")


def test_image_or_text_and_not_both(base, words):
    with pytest.raises(ValueError, match=r"either an image .* or a text .* got neither"):
        base()
    with pytest.raises(ValueError, match=r"either an image .* or a text .* got both"):
        base(pixel_values=random_images(1), input_ids=words["input_ids"])


def test_pixels_or_an_encoding_and_not_both(base):
    pixels = random_images(1)
    with pytest.raises(ValueError, match="either `pixel_values` or `image_encoding`, got neither"):
        base.get_image_features()
    with pytest.raises(ValueError, match="either `pixel_values` or `image_encoding`, got both"):
        base(pixel_values=pixels, image_encoding=base.encode_image(pixels))


# --- pixel masks -------------------------------------------------------------------------------


def test_sizes_are_read_from_the_mask():
    batch = pad_images([torch.zeros(3, 5, 7), torch.zeros(3, 8, 1)], 8, 9)
    assert image_sizes(**batch).tolist() == [[5, 7], [8, 1]]
    assert image_sizes(batch["pixel_values"], None).tolist() == [[8, 9]] * 2


def test_mask_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"`pixel_mask` must have the shape \(2, 8, 9\) .* got \(2, 9, 8\)"):
        image_sizes(torch.zeros(2, 3, 8, 9), torch.ones(2, 9, 8))


def test_mask_without_a_pixel_is_an_error():
    mask = torch.ones(2, 8, 9)
    mask[1] = 0
    with pytest.raises(ValueError, match="`pixel_mask` must mark"):
        image_sizes(torch.zeros(2, 3, 8, 9), mask)


@pytest.mark.parametrize("place", [(slice(2, 6), slice(0, 5)), (slice(0, 5), slice(1, 9)), ([0, 1, 3], slice(None))])
def test_mask_of_an_image_elsewhere_is_an_error(place):
    mask = torch.zeros(2, 8, 9)
    mask[0] = 1
    mask[1][place] = 1
    with pytest.raises(ValueError, match=r"`pixel_mask` must mark .* top left corner"):
        image_sizes(torch.zeros(2, 3, 8, 9), mask)


# --- transformers ------------------------------------------------------------------------------


def test_attention_implementations_agree_and_reach_every_part(model, batches, monkeypatch):
    def run():
        torch.manual_seed(0)
        with torch.no_grad():
            return {name: model(name, **batch).loss for name, batch in batches.items()}

    calls = []
    reference = attention.eager_attention_forward

    def spy(module, *args, **kwargs):
        calls.append(module)
        return reference(module, *args, **kwargs)

    monkeypatch.setattr(attention, "eager_attention_forward", spy)
    model.set_attn_implementation("sdpa")
    fused = run()
    assert not calls
    model.set_attn_implementation("eager")
    written_out = run()
    assert len({id(module) for module in calls}) == 4  # two layers of the text encoder, two of g
    torch.testing.assert_close(written_out, fused, atol=1e-4, rtol=1e-4)


def test_gradient_reaches_every_parameter_from_some_task(model, batches):
    """But those of routes' experts that no task of these chose, and of frozen norms."""
    model.train()
    for name, batch in batches.items():
        model(name, **batch).loss.backward()
    missing = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert not missing


def test_initial_weights_are_finite_and_differ_by_seed():
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(UniPerceiverV2Model(tiny_config()))
    states = [each.state_dict() for each in models]
    assert all(torch.equal(values, states[1][name]) for name, values in states[0].items())
    assert all(values.isfinite().all() for values in states[0].values() if values.is_floating_point())
    assert not torch.equal(states[0]["spe_token"], states[2]["spe_token"])
    experts = states[0]["decoder.layers.0.feed_forward.up_projection.weight"]
    assert experts.std().item() == pytest.approx(0.05, rel=0.1)
    assert not torch.equal(experts[0], experts[1])


def test_merged_experts_answer_as_routed_ones_and_are_saved(model, batches, tmp_path):
    batch = {key: batches["classification"][key] for key in ("pixel_values", "pixel_mask")}
    classifier = UniPerceiverV2ForImageClassification.from_model(model)
    detector = UniPerceiverV2ForObjectDetection.from_model(model)
    with torch.no_grad():
        before = classifier(**batch).logits, detector(**batch).logits
        classifier.merge_experts(["classification", "detection"])
        after = classifier(**batch).logits, detector(**batch).logits
        classifier.save_pretrained(tmp_path)
        loaded = UniPerceiverV2ForImageClassification.from_pretrained(tmp_path).eval()
        reloaded = loaded(**batch).logits
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reloaded, before[0], atol=1e-5, rtol=1e-5)
    assert loaded.config.decoder_config.merged_routes == ["image", "label"]
    with pytest.raises(ValueError, match=r"cannot use 'text'.*language_modeling"):
        loaded.model.decode_text(torch.tensor([[0, 9, 2]]), torch.ones(1, 3), "text")


def test_a_new_model_starts_as_its_parts_ask():
    """transformers passes over modules without parameters of their own, in code that is not its own."""
    network = UniPerceiverV2Model(tiny_config()).image_encoder.proposal_network
    decoder = network.query_decoder
    torch.testing.assert_close(decoder.class_head.bias.sigmoid(), torch.full((1,), 0.01))
    assert not decoder.box_head.layers[-1].weight.any()
    assert not decoder.box_head.layers[-1].bias.any()
    attention = network.pixel_decoder.layers[0].self_attention
    assert not attention.sampling_offsets.weight.any()
    ring = attention.sampling_offsets.bias.view(attention.num_heads, -1, attention.num_points, 2)
    steps = ring / torch.arange(1, attention.num_points + 1)[:, None]  # the n-th point lies n cells away
    torch.testing.assert_close(steps.abs().amax(dim=-1), torch.ones(steps.shape[:-1]))
