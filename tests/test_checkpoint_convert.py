"""Conversion between the publisher's and transformers' naming, held against transformers itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from checkpoint_cases import files_of, random_model, same_weights, small_config

from anychip.checkpoint import convert, digest, load_model, read_config, save_checkpoint
from anychip.checkpoint.configs import transformers_config
from anychip.checkpoint.layout import pieces
from anychip.checkpoint.naming import canonical, transformers
from anychip.config import load_config
from anychip.errors import ConfigError, InputError
from anychip.model import Layout
from anychip.ops import Ops

hf = pytest.importorskip("transformers")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    model = random_model(small_config())
    save_checkpoint(model, model.config, tmp_path / "published", format="fp32", shard_bytes=400_000)
    (tmp_path / "published" / "tokenizer.json").write_text("{}")
    return tmp_path / "published"


def test_transformers_loads_the_converted_checkpoint_and_agrees(published: Path, tmp_path: Path) -> None:
    convert(published, tmp_path / "hf", to="transformers")
    theirs, info = hf.DeepseekV4ForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True, dtype=torch.float32
    )
    assert not any(
        info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    )
    model, _ = load_model(published, Ops())
    ids = torch.randint(160, (140,), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours = model.logits(model(ids, Layout.whole([140])).hidden_Td)
        reference = theirs(ids[None]).logits[0]
    assert (ours - reference).abs().max() <= 1e-4 * reference.abs().max()


@pytest.mark.parametrize("format", ["fp32", "bf16"])
def test_there_and_back_gives_the_same_bytes(published: Path, format: str, tmp_path: Path) -> None:
    convert(published, tmp_path / "start", format=format, shard_bytes=400_000)
    convert(tmp_path / "start", tmp_path / "hf", to="transformers")
    convert(tmp_path / "hf", tmp_path / "back", to="publisher", shard_bytes=400_000)
    assert files_of(tmp_path / "back") == files_of(tmp_path / "start")  # tokenizer and config.json too
    assert digest(tmp_path / "hf") == digest(tmp_path / "start")


def test_both_namings_load_into_the_same_model(published: Path, tmp_path: Path) -> None:
    convert(published, tmp_path / "hf", to="transformers", shard_bytes=300_000)
    assert same_weights(load_model(published, Ops())[0], load_model(tmp_path / "hf", Ops())[0])


@pytest.mark.parametrize("original", [True, False])
def test_what_transformers_saves_can_be_loaded_and_converted(original: bool, tmp_path: Path) -> None:
    config = small_config(num_nextn_predict_layers=0, compress_ratios=(0, 4, 128))
    torch.manual_seed(5)
    theirs = hf.DeepseekV4ForCausalLM(hf.DeepseekV4Config(**transformers_config(config, "float32")))
    theirs.save_pretrained(tmp_path / "hf", save_original_format=original)
    assert read_config(tmp_path / "hf") == config
    convert(tmp_path / "hf", tmp_path / "published")
    model, _ = load_model(tmp_path / "published", Ops())
    state = theirs.state_dict()
    assert torch.equal(
        model.get_parameter("layers.1.ffn.experts.w13"), state["model.layers.1.mlp.experts.gate_up_proj"]
    )
    assert torch.equal(
        model.get_parameter("layers.2.attn.kv_norm.weight"), state["model.layers.2.self_attn.kv_norm.weight"]
    )
    assert torch.equal(model.get_parameter("hc_head_fn"), state["model.hc_head.hc_fn"])
    assert same_weights(model, load_model(tmp_path / "hf", Ops())[0])


def test_every_name_of_v4_flash_is_recognised_in_both_namings() -> None:
    config = load_config("v4-flash")
    rename = canonical(config)
    for piece in pieces(config):
        assert rename(piece.name) == piece.name
        assert rename(transformers(piece).name) in (piece.tensor, piece.name)


def test_transformers_dropping_the_mtp_block_leaves_a_model_without_one(
    published: Path, tmp_path: Path
) -> None:
    convert(published, tmp_path / "hf", to="transformers")
    hf.DeepseekV4ForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).save_pretrained(
        tmp_path / "saved"
    )
    model, loaded = load_model(tmp_path / "saved", Ops())  # its names are now a mixture of both namings
    assert loaded.config.num_nextn_predict_layers == 0 and not model.mtp
    assert torch.equal(model.head.weight, load_model(published, Ops())[0].head.weight)


@pytest.mark.parametrize("preset", ["nano", "tiny", "mini", "v4-flash", "v4-pro"])
def test_config_json_means_the_same_in_both_forms(preset: str, tmp_path: Path) -> None:
    config = load_config(preset)
    (tmp_path / "config.json").write_text(json.dumps(transformers_config(config, "bfloat16")))
    theirs = hf.AutoConfig.from_pretrained(tmp_path)
    direct = hf.DeepseekV4Config(**config.to_dict())  # transformers' own reading of the publisher's fields
    for name in (
        "layer_types",
        "mlp_layer_types",
        "compress_rates",
        "qk_rope_head_dim",
        "rope_theta",
        "hidden_size",
    ):
        assert getattr(theirs, name) == getattr(direct, name)
    assert {
        k: v for k, v in direct.rope_parameters["compress"].items() if k != "type"
    } == theirs.rope_parameters["compress"]
    assert read_config(tmp_path, ["mtp.0.norm.weight"]) == config
    theirs.save_pretrained(tmp_path)
    assert read_config(tmp_path, ["mtp.0.norm.weight"]) == config


def test_formats_convert_into_each_other_without_a_second_loss(published: Path, tmp_path: Path) -> None:
    convert(published, tmp_path / "fp4", format="fp4")
    convert(tmp_path / "fp4", tmp_path / "bf16", format="bf16")
    convert(tmp_path / "fp4", tmp_path / "fp4 again", format="fp4")
    convert(tmp_path / "fp4", tmp_path / "fp4 kept")
    assert same_weights(load_model(tmp_path / "fp4", Ops())[0], load_model(tmp_path / "bf16", Ops())[0])
    assert files_of(tmp_path / "fp4") == files_of(tmp_path / "fp4 again") == files_of(tmp_path / "fp4 kept")


def test_the_transformers_naming_refuses_quantised_formats(published: Path, tmp_path: Path) -> None:
    convert(published, tmp_path / "fp8", format="fp8")
    for source, format in ((tmp_path / "fp8", None), (published, "fp4")):
        with pytest.raises(InputError, match="holds fp32 or bf16, not fp[48]"):
            convert(source, tmp_path / "hf", to="transformers", format=format)
    with pytest.raises(InputError, match="no layout 'transfomers'.*Did you mean 'transformers'"):
        convert(published, tmp_path / "hf", to="transfomers")
    with pytest.raises(InputError, match="no checkpoint format 'int8'"):
        convert(published, tmp_path / "hf", format="int8")
    assert not (tmp_path / "hf").exists()


def test_a_transformers_config_that_cannot_be_run_is_refused_with_every_reason(tmp_path: Path) -> None:
    fields = transformers_config(small_config(), "float32")
    fields["layer_types"][0] = "full_attention"
    fields["mlp_layer_types"] = ["moe", "hash_moe", "moe"]
    fields["rope_parameters"]["compress"]["attention_factor"] = 1.3
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError) as error:
        read_config(tmp_path)
    for part in ("full_attention", "hash_moe layers must come first", "attention_factor=1.3: only 1.0"):
        assert part in str(error.value)


def test_fp4_is_refused_where_expert_rows_are_no_multiple_of_32(tmp_path: Path) -> None:
    model = random_model(dataclasses.replace(small_config(), moe_intermediate_size=40))
    with pytest.raises(InputError, match=r"multiples of 32; here \[40\] are not: use fp8"):
        save_checkpoint(model, model.config, tmp_path / "out", format="fp4")
    assert list(tmp_path.iterdir()) == []
