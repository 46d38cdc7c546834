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


def test_an_unknown_family_names_those_that_there_are():
    with pytest.raises(ConfigError, match="only deepseek_v3, .*qwen3_moe can be run. Did you mean 'deepseek_v"):
        ModelConfig.from_dict(load_config("nano").to_dict() | {"model_type": "deepseek_v2"})


@pytest.mark.parametrize(("preset", "change", "words"), [
    ("v3-nano", {"n_group": 3}, "n_group=3 must divide n_routed_experts=16"),
    ("v3-nano", {"topk_group": 1, "num_experts_per_tok": 8}, "num_experts_per_tok=8 exceeds the 4 experts"),
    ("v3-nano", {"num_key_value_heads": 2}, "num_key_value_heads=2: only num_attention_heads=4 can be run"),
    ("v3-nano", {"rope_scaling": {"type": "linear", "factor": 2, "original_max_position_embeddings": 9}}, "'yarn'"),
    ("qwen3-nano", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 9,
                                     "attention_factor": 3.0}}, "rope_scaling: attention_factor cannot be run"),
    ("glm5-nano", {"indexer_types": ["shared"] * 5}, "the first full"),
    ("qwen3-moe-nano", {"mlp_only_layers": [1]}, "mlp_only_layers=\\[1\\]: only \\[\\] can be run"),
    ("qwen3-nano", {"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention_heads"),
])  # fmt: skip
def test_what_a_family_cannot_run_is_refused_with_the_reason(preset, change, words):
    with pytest.raises(ConfigError, match=words):
        ModelConfig.from_dict(load_config(preset).to_dict() | change)


def test_glms_indexers_follow_the_published_schedule():
    fields = load_config("glm-5.2").to_dict()
    types = fields.pop("indexer_types")
    scheduled = ModelConfig.from_dict(fields | {"index_topk_freq": 4, "index_skip_topk_offset": 3})
    assert list(scheduled.indexer_types) == types and types.count("full") == 21
    specs = [scheduled.layer(i).attention.indexer for i in (*range(8), 78)]
    assert [spec.source for spec in specs] == [0, 1, 2, 2, 2, 2, 6, 6, 78] and not specs[-1].shared


def test_an_unknown_preset_offers_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'tiny'"):
        load_config("tinny")


def test_a_file_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        load_config(tmp_path)
