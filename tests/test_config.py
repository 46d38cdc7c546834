"""config.json: the publisher's fields come through, and every wrong one is named at once."""

import json

import pytest

from anychip.config import PRESETS, ModelConfig, load_config
from anychip.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_round_trip(name):
    config = load_config(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_all_wrong_fields_are_named_at_once():
    fields = load_config("nano").to_dict() | {"hiden_size": 1, "head_dim": "64", "hidden_act": "gelu"}
    del fields["vocab_size"]
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(fields)
    text = str(caught.value)
    assert "hiden_size: no such field. Did you mean 'hidden_size'?" in text
    assert "head_dim='64': expected int" in text and "only 'silu' can be run" in text and "vocab_size: missing" in text


def test_contradictions_are_named_at_once():
    fields = load_config("nano").to_dict() | {"o_groups": 3, "compress_ratios": [0, 5], "num_experts_per_tok": 99}
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(fields)
    text = str(caught.value)
    assert "o_groups=3 does not divide num_attention_heads=4" in text
    assert "each must be 0 (window), 4 (CSA) or 128 (HCA)" in text and "exceeds n_routed_experts=16" in text


def test_an_unknown_preset_offers_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'tiny'"):
        load_config("tinny")


def test_a_file_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        load_config(tmp_path)
