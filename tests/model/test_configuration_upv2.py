"""The config: misspelt fields are errors, presets can be changed field by field, files come back equal."""

import json
import logging

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError

from tiny_models import tiny_config
from transformers_upv2.model.configuration_upv2 import (
    UniPerceiverV2Config,
    UniPerceiverV2DecoderConfig,
    UniPerceiverV2ProposalConfig,
)


def test_misspelt_field_names_the_close_match():
    with pytest.raises(ValueError, match=r"UniPerceiverV2Config has no field `num_proposal`.*`num_proposals`"):
        UniPerceiverV2Config.preset("tiny", num_proposal=3)
    with pytest.raises(ValueError, match=r"UniPerceiverV2DecoderConfig has no field `drop_paths`.*`drop_path`"):
        UniPerceiverV2Config.preset("tiny", decoder_config={"drop_paths": 0.1})
    with pytest.raises(ValueError, match=r"UniPerceiverV2ProposalConfig has no field `num_querys`.*`num_queries`"):
        UniPerceiverV2ProposalConfig(num_querys=3)


def test_field_without_a_close_match_is_refused_as_well():
    with pytest.raises(ValueError, match=r"has no field `xyzzy`\. Remove it"):
        UniPerceiverV2Config(xyzzy=1)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"`name` must be one of .*'tiny'.* got 'tny'"):
        UniPerceiverV2Config.preset("tny")


def test_an_override_replaces_single_fields_of_a_part():
    config = UniPerceiverV2Config.preset("tiny", decoder_config={"num_hidden_layers": 1})
    assert config.decoder_config.num_hidden_layers == 1
    assert config.decoder_config.hidden_size == UniPerceiverV2Config.preset("tiny").decoder_config.hidden_size == 128
    # and leaves the preset alone
    assert UniPerceiverV2Config.preset("tiny").decoder_config.num_hidden_layers == 3


def test_round_trip_through_a_folder(tmp_path):
    label_sets = {"detection": {"names": ["cat", "dog"], "token_ids": [[[0, 5, 2]], [[0, 6, 2], [0, 7, 8, 2]]]}}
    config = tiny_config(label_sets=label_sets, share_temperature=True, detection_score="softmax")
    config.save_pretrained(tmp_path)
    loaded = UniPerceiverV2Config.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert isinstance(loaded.decoder_config, UniPerceiverV2DecoderConfig)
    assert loaded.label_sets == label_sets
    assert loaded.text_config.vocab_size == 320
    assert loaded.backbone_config.backbone == "test_efficientnet"
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "config.json").read_bytes() == (tmp_path / "again" / "config.json").read_bytes()


def test_misspelt_field_in_a_file_is_an_error(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["decoder_config"]["num_hiden_layers"] = 7
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"`num_hiden_layers`.*`num_hidden_layers`"):
        UniPerceiverV2Config.from_pretrained(tmp_path)


def test_label_set_needs_token_ids_for_every_name():
    with pytest.raises(
        StrictDataclassClassValidationError, match=r"`label_sets\['detection'\]` must hold as many .* got 1 and 2"
    ):
        tiny_config(label_sets={"detection": {"names": ["a", "b"], "token_ids": [[[0, 2]]]}})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_proposals": 11}, "`num_proposals` must not exceed .* got 11 and 10"),
        ({"decoder_config": {"num_attention_heads": 5}}, "`hidden_size` must be a multiple .* got 32 and 5"),
        ({"decoder_config": {"num_experts": 1}}, "`num_experts_per_group` must not exceed .* got 2 and 1"),
        ({"decoder_config": {"merged_routes": ["imagine"]}}, "`merged_routes` must hold names .* got 'imagine'"),
    ],
)
def test_fields_that_do_not_fit_together(overrides, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(**overrides)


def test_mask_token_is_the_last_of_the_vocabulary_unless_given():
    assert tiny_config().mask_token_id == 319
    assert tiny_config(mask_token_id=4).mask_token_id == 4


def test_label_sets_of_two_configs_are_two():
    first, second = tiny_config(), tiny_config()
    first.label_sets["detection"] = {"names": [], "token_ids": []}
    assert second.label_sets == {}


def test_a_saved_config_with_fields_of_another_version_loads_with_a_warning(tmp_path, caplog):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"field_of_tomorrow": 3}))
    name = UniPerceiverV2Config.__module__
    with caplog.at_level(logging.WARNING, logger=name):
        config = UniPerceiverV2Config.from_pretrained(tmp_path)
    assert config.field_of_tomorrow == 3
    assert "UniPerceiverV2Config has fields that are not its own: ['field_of_tomorrow']" in caplog.text


def test_the_vocabulary_is_the_text_encoders():
    config = tiny_config()
    config.vocab_size = 77
    assert config.text_config.vocab_size == config.vocab_size == 77
