"""A model from parts: each part arrives unchanged, brings its own sizes, and is refused where it cannot fit."""

import copy
import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from transformers import (
    AutoBackbone,
    BertConfig,
    BertModel,
    BertTokenizer,
    GPT2Config,
    ResNetBackbone,
    ResNetConfig,
    RobertaConfig,
    RobertaForMaskedLM,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTModel,
)

from tiny_models import random_images, scatter_weights, tiny_config
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.modeling_upv2 import UniPerceiverV2Model
from transformers_upv2.model.proposal_network import ProposalNetwork, ProposalSettings

TEXT_SIZES = {
    "vocab_size": 60,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "initializer_range": 0.3,
}
BERT_IDS = {"pad_token_id": 0, "unk_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4}
SWIN = SwinConfig(image_size=64, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 4], window_size=2)


def from_parts(config=None, **parts):
    return UniPerceiverV2Model.from_pretrained_parts(**parts, config=config or tiny_config())


def assert_equal_maps(model, reference):
    images = random_images(2).double()
    with torch.no_grad():
        expected = reference.double().eval()(images)
        expected = getattr(expected, "feature_maps", expected)
        for ours, theirs in zip(model.image_encoder.backbone.double()(images).feature_maps, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# backbones


def test_native_backbone_object_brings_its_config():
    backbone = ResNetBackbone(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_indices=[1, 2, 3, 4])
    )
    model = from_parts(backbone=backbone)
    assert model.config.backbone_config.hidden_sizes == [8, 16, 24, 32]
    assert_equal_maps(model, backbone)


def test_native_classifier_folder_gives_its_backbone(tmp_path, caplog):
    classifier = scatter_weights(SwinForImageClassification(SWIN))
    classifier.save_pretrained(tmp_path)
    model = from_parts(backbone=tmp_path)
    assert model.image_encoder.backbone.channels == [12, 24, 48, 96]
    ours, theirs = model.image_encoder.backbone.state_dict(), classifier.state_dict()
    shared = [name for name in ours if name in theirs]
    assert len(shared) == len([name for name in theirs if not name.startswith("classifier")])
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)
    # a classifier has no norm for every level
    assert "hidden_states_norms.stage1.weight" in ours
    assert "image_encoder.backbone (360)" in caplog.text


@pytest.mark.parametrize("config", [tiny_config(), tiny_config(backbone_config={"backbone": "resnet18"})])
def test_timm_folder_as_the_hub_has_it(tmp_path, config, caplog):
    reference = scatter_weights(timm.create_model("resnet10t"))
    fields = {"architecture": "resnet10t", "num_classes": 1000, "pretrained_cfg": {"tag": "c3_in1k"}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    model = from_parts(config, backbone=str(tmp_path))
    features = timm.create_model("resnet10t", features_only=True, out_indices=[-4, -3, -2, -1])
    features.load_state_dict(reference.state_dict(), strict=False)
    assert_equal_maps(model, features)
    assert model.config.backbone_config.freeze_batch_norm_2d
    assert "left out: fc (2)" in caplog.text


def test_saved_timm_backbone_folder(tmp_path):
    backbone = scatter_weights(AutoBackbone.from_config(tiny_config().backbone_config))
    backbone.save_pretrained(tmp_path)
    assert_equal_maps(from_parts(backbone=tmp_path), backbone)


def test_clip_resnet_of_timm():
    """The backbone of the paper's Table 5, as timm builds it, with its names."""
    reference = timm.create_model("resnet50_clip").eval()
    model = from_parts(backbone=reference)
    assert model.config.backbone_config.backbone == "resnet50_clip"
    assert model.image_encoder.backbone.channels == [256, 512, 1024, 2048]
    images = random_images(1)
    with torch.no_grad():
        expected = reference.stages(reference.stem(images))
        torch.testing.assert_close(
            model.image_encoder.backbone(images).feature_maps[-1], expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["supervised", "moco"])
def test_bare_resnet_weights(tmp_path, kind, caplog):
    """Torchvision's names, which MoCo v2 writes behind `module.encoder_q.`."""
    reference = scatter_weights(torchvision.models.resnet18(weights=None))
    content = reference.state_dict()
    if kind == "moco":
        content = {f"module.encoder_q.{name}": value for name, value in content.items()}
        content |= {name.replace("encoder_q", "encoder_k"): value + 1 for name, value in content.items()}
        content = {"epoch": 200, "arch": "resnet18", "state_dict": content | {"module.queue": torch.ones(2, 3)}}
    torch.save(content, tmp_path / "weights.pth.tar")
    config = tiny_config(backbone_config={"backbone": "resnet18"})
    model = from_parts(config, backbone=tmp_path / "weights.pth.tar")
    features = timm.create_model("resnet18", features_only=True, out_indices=[1, 2, 3, 4])
    features.load_state_dict(reference.state_dict(), strict=False)
    assert_equal_maps(model, features)
    assert "backbone: converted 100 tensors" in caplog.text
    if kind == "moco":
        assert "left out: module.encoder_q (2), module.encoder_k (102), module (1)" in caplog.text


def test_weights_of_another_size_are_refused_with_both_sizes():
    config = tiny_config(backbone_config={"backbone": "resnet18"})
    wide = torchvision.models.resnet34(weights=None).state_dict()
    wide["layer1.0.conv1.weight"] = torch.zeros(9, 64, 3, 3)
    with pytest.raises(
        ValueError,
        match=r"`backbone` must have the sizes .* got 1 tensors .*layer1.0.conv1.weight` \(9, 64, 3, 3\) for",
    ):
        from_parts(config, backbone=wide)
    with pytest.raises(
        ValueError, match=r"`backbone` must fill all 100 tensors .* the state dict lacks 1 of .*bn1.bias"
    ):
        from_parts(
            config,
            backbone={k: v for k, v in wide.items() if k != "bn1.bias" and "layer1.0.conv1" not in k}
            | {"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)},
        )


def test_maps_of_other_strides_are_refused():
    from transformers import VitDetBackbone, VitDetConfig

    config = VitDetConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        out_indices=[1, 2, 3, 4],
    )
    with pytest.raises(ValueError, match=r"must give maps at strides \(4, 8, 16, 32\).*VitDetBackbone .*\(16, 4, 4\)"):
        from_parts(backbone=VitDetBackbone(config))


def test_folder_without_a_backbone_is_refused(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must be a backbone of transformers or timm, got .* of the type 'gpt2'"):
        from_parts(backbone=tmp_path)
    with pytest.raises(ValueError, match=r"`backbone` must be a Hub id, a folder, .* got int"):
        from_parts(backbone=3)


# text encoders


def encode(model, ids, mask):
    with torch.no_grad():
        return model.encode_text(ids, mask)


def test_roberta_of_another_width_gets_a_linear(caplog):
    reference = scatter_weights(RobertaForMaskedLM(RobertaConfig(**TEXT_SIZES, type_vocab_size=1))).eval()
    model = from_parts(text_encoder=reference)
    assert model.config.text_config.hidden_size == 48
    assert model.config.mask_token_id == 59
    ids = torch.randint(4, 59, (2, 7))
    mask = torch.ones_like(ids)
    states = reference.roberta(ids, attention_mask=mask).last_hidden_state
    expected = model.text_encoder.output_projection(states)
    torch.testing.assert_close(encode(model, ids, mask), expected, rtol=1e-5, atol=1e-5)
    assert "text_encoder (1,568)" in caplog.text  # the Linear


def bert_folder(path):
    """A small BERT with its tokenizer, whose config names no special id but padding's."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(55))]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(path)
    model = scatter_weights(BertModel(BertConfig(**TEXT_SIZES, pad_token_id=0)))
    model.save_pretrained(path)
    return model.eval()


def test_bert_folder_brings_its_special_ids_positions_and_width(tmp_path):
    reference = bert_folder(tmp_path)
    model = from_parts(text_encoder=tmp_path)
    assert {key: getattr(model.config, key) for key in BERT_IDS} == BERT_IDS
    ids = torch.randint(5, 60, (2, 20))  # positions from 0: all 20 can be used
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    with torch.no_grad():
        states = reference(ids, attention_mask=mask).last_hidden_state
        expected = model.text_encoder.output_projection(states)
    torch.testing.assert_close(encode(model, ids, mask)[mask == 1], expected[mask == 1], rtol=1e-5, atol=1e-5)
    assert not set(BERT_IDS.values()) - {3} & set(model.vocabulary_ids().tolist())
    # and it is saved with them
    model.save_pretrained(tmp_path / "model")
    loaded = UniPerceiverV2Model.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(encode(loaded, ids, mask), encode(model, ids, mask))
    assert loaded.config.eos_token_id == 3


def test_bert_object_names_its_ids_in_its_config():
    named = BertModel(BertConfig(**TEXT_SIZES, **BERT_IDS))
    assert from_parts(text_encoder=named).config.mask_token_id == 4
    silent = BertModel(BertConfig(**TEXT_SIZES, pad_token_id=0))
    with pytest.raises(ValueError, match=r"must name its special ids, but BertModel does not say \['bos_token_id', "):
        from_parts(text_encoder=silent)
    # unless the model's config is made for a BERT
    fields = BERT_IDS | {"text_config": BertConfig(**TEXT_SIZES)}
    config = tiny_config()
    for key, value in fields.items():
        setattr(config, key, value)
    assert from_parts(config, text_encoder=silent).config.bos_token_id == 2
    config.bos_token_id = 3
    with pytest.raises(ValueError, match=r"five different ones below the vocabulary size 60 .* 'eos_token_id': 3"):
        from_parts(config, text_encoder=silent)


@pytest.mark.parametrize("kind", ["object", "folder"])
def test_other_text_encoders_are_refused(tmp_path, kind):
    model = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model of one of the types \['bert', .* got 'vit'"):
        from_parts(text_encoder=model if kind == "object" else tmp_path)
    with pytest.raises(ValueError, match=r"`text_encoder` must be a Hub id, a folder or a model .* got dict"):
        from_parts(text_encoder={})


# proposal networks and whole models


@pytest.fixture
def source():
    return scatter_weights(UniPerceiverV2Model(tiny_config(proposal_config={"hidden_size": 16, "num_classes": 3})))


@pytest.mark.parametrize("kind", ["module", "model", "folder", "task folder"])
def test_proposal_network_arrives_unchanged_with_its_sizes(source, tmp_path, kind):
    network = source.image_encoder.proposal_network
    whole = source if kind != "task folder" else UniPerceiverV2ForMultiTask(source.config)
    if kind == "task folder":
        whole.model.load_state_dict(source.state_dict())
    whole.save_pretrained(tmp_path)
    given = {"module": network, "model": source}.get(kind, tmp_path)
    model = from_parts(proposal_network=given)
    assert model.config.proposal_config.hidden_size == 16
    assert model.image_encoder.proposal_network.settings == network.settings
    assert model.image_encoder.proposal_network.loss_settings == network.loss_settings
    state = network.state_dict()
    copied = model.image_encoder.proposal_network.state_dict()
    assert all(torch.equal(copied[name], value) for name, value in state.items())


def test_whole_model_as_all_three_parts(source, tmp_path, caplog):
    source.save_pretrained(tmp_path)
    model = from_parts(backbone=tmp_path, text_encoder=tmp_path, proposal_network=tmp_path)
    same = {name for name, value in source.state_dict().items() if torch.equal(model.state_dict()[name], value)}
    expected = {
        name
        for name in source.state_dict()
        if name.startswith(("image_encoder.backbone.", "image_encoder.proposal_network.", "text_encoder."))
    }
    assert expected <= same
    assert "decoder.layers.0.attention.qkv_projection.weight" not in same
    assert "newly initialized: spe_token (32), text_type (32)" in caplog.text


def test_folder_without_the_part_is_refused(source, tmp_path):
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("image_encoder.proposal_network.")}
    source.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"`proposal_network` must fill all \d+ tensors of its place, but .* lacks"):
        from_parts(proposal_network=tmp_path)
    assert_equal_maps(from_parts(backbone=tmp_path), source.image_encoder.backbone)


def test_proposal_network_for_other_maps_is_refused_with_both_sides_channels():
    settings = ProposalSettings(hidden_size=16, encoder_layers=1, decoder_layers=1, num_heads=2, num_queries=10)
    network = ProposalNetwork([8, 16, 24, 32], settings)
    channels = r"\(8, 16, 24, 32\), the backbone gives \(24, 32, 48, 64\)"
    with pytest.raises(ValueError, match="`proposal_network` must have been made for maps .*" + channels):
        from_parts(proposal_network=network)


def test_what_is_no_proposal_network_is_refused():
    with pytest.raises(ValueError, match=r"`proposal_network` must be the Hub id or folder .* got Linear"):
        from_parts(proposal_network=torch.nn.Linear(2, 2))


def test_given_config_is_not_changed_and_task_classes_are_built_as_well(source):
    config = tiny_config()
    before = copy.deepcopy(config.to_dict())
    model = UniPerceiverV2ForMultiTask.from_pretrained_parts(proposal_network=source, config=config)
    assert config.to_dict() == before
    assert isinstance(model, UniPerceiverV2ForMultiTask)
    assert not model.training
    value = source.image_encoder.proposal_network.query_decoder.class_head.weight
    assert torch.equal(model.model.image_encoder.proposal_network.query_decoder.class_head.weight, value)


def test_half_precision_part_does_not_decide_on_the_models_precision():
    encoder = BertModel(BertConfig(**TEXT_SIZES, **BERT_IDS, dtype="float16")).half()
    model = from_parts(text_encoder=encoder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
