"""Checkpoints of every family: published names and formats to the byte, and both ways with transformers itself."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from checkpoint_cases import files_of, same_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from anychip.checkpoint import convert, digest, load_checkpoint, load_model, read_config, save_checkpoint
from anychip.checkpoint.configs import from_transformers, transformers_config
from anychip.checkpoint.naming import in_model, publisher, stored_tensors
from anychip.chips import open_chip
from anychip.config import load_config
from anychip.errors import CheckpointError, ConfigError, InputError
from anychip.model import Layout, Transformer, initialize
from anychip.ops import Ops
from anychip.serve.models import open_model
from anychip.text.tokenizer import open_tokenizer

FAMILIES = ["v3-nano", "v32-nano", "glm5-nano", "qwen3-moe-nano", "qwen3-nano"]
LENGTH = 90  # beyond index_topk = 64: the indexers choose


def small(preset, **changes):
    """Nano with fewer layers and experts, and a width that leaves cut edge blocks for the 128x128 scales."""
    config = load_config(preset)
    experts = {name: 8 for name in ("n_routed_experts", "num_experts") if hasattr(config, name)}
    kinds = {"indexer_types": config.indexer_types[:3]} if hasattr(config, "indexer_types") else {}
    changes = {"vocab_size": 160, "num_hidden_layers": 3, "hidden_size": 160} | experts | kinds | changes
    return dataclasses.replace(config, **changes)


def random_model(config):
    model = Transformer(config, Ops())
    initialize(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dim() == 1:  # norms and biases begin at constants
                tensor.add_(torch.randn(tensor.shape, generator=generator) * (0.02 if "gate" in name else 0.2))
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return random_model(small(request.param))


def logits_of(model, ids):
    with torch.no_grad():
        return model.logits(model(ids, Layout.whole([len(ids)])).hidden_Td)


def agree(ours, theirs):
    return float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())


IDS = torch.randint(160, (LENGTH,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("preset", [*FAMILIES, "nano", "mini", "v4-flash", "glm-5.2", "qwen3-30b-a3b"])
def test_the_layout_is_exactly_the_models_state(preset):
    config = load_config(preset)
    with torch.device("meta"):
        state = Transformer(config, Ops()).state_dict()
    layout = list(stored_tensors(config, in_model))
    assert {stored.name: stored.shape for stored in layout} == {n: tuple(t.shape) for n, t in state.items()}
    published = list(stored_tensors(config, publisher))
    assert len({stored.name for stored in published}) == len(published)
    for stored in (*layout, *published):
        assert sum(math.prod(piece.shape) for piece in stored.pieces) == math.prod(stored.shape)


@pytest.mark.parametrize("format", ["fp32", "bf16", "fp8"])
def test_reading_then_writing_gives_the_same_bytes(model, format, tmp_path):
    save_checkpoint(model, model.config, tmp_path / "first", format=format, shard_bytes=300_000)
    again, loaded = load_model(tmp_path / "first", Ops())
    assert loaded.format == format and loaded.config == model.config == read_config(tmp_path / "first")
    save_checkpoint(again, loaded.config, tmp_path / "again", format=format, scales=loaded.scales, shard_bytes=300_000)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "first")
    if format == "fp32":
        assert same_weights(model, again) and digest(tmp_path / "first") == digest(model)


def test_transformers_loads_what_we_export_and_agrees(model, tmp_path):
    hf = pytest.importorskip("transformers")
    save_checkpoint(model, model.config, tmp_path / "published", format="fp32")
    convert(tmp_path / "published", tmp_path / "hf", to="transformers")
    for folder in ("published", "hf"):
        theirs, info = hf.AutoModelForCausalLM.from_pretrained(
            tmp_path / folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager")
        assert not (info["missing_keys"] or info["mismatched_keys"] or info["error_msgs"])
        assert all(name.startswith("model.layers.3.") for name in info["unexpected_keys"])  # the MTP block
        with torch.no_grad():
            assert agree(logits_of(model, IDS), theirs(IDS[None]).logits[0])
    convert(tmp_path / "hf", tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(tmp_path / "published")


@pytest.mark.parametrize("original", [True, False])
def test_what_transformers_saves_can_be_loaded_and_agrees(model, original, tmp_path):
    hf = pytest.importorskip("transformers")
    config = dataclasses.replace(model.config, num_nextn_predict_layers=0)
    torch.manual_seed(5)
    theirs = hf.AutoModelForCausalLM.from_config(
        hf.AutoConfig.for_model(**transformers_config(config, "float32")), attn_implementation="eager")
    theirs.save_pretrained(tmp_path / "hf", save_original_format=original)
    ours, loaded = load_model(tmp_path / "hf", Ops())
    assert loaded.config == config
    with torch.no_grad():
        assert agree(logits_of(ours, IDS), theirs(IDS[None]).logits[0])
    convert(tmp_path / "hf", tmp_path / "published")
    assert same_weights(ours, load_model(tmp_path / "published", Ops())[0])


def test_fp8_is_stored_as_its_publisher_stores_it(tmp_path):
    stored = {}
    for preset, rule in (("v3-nano", "fitted"), ("v32-nano", "powers"), ("qwen3-nano", "fitted")):
        model = random_model(small(preset))
        save_checkpoint(model, model.config, tmp_path / preset, format="fp8")
        stored[preset] = load_file(tmp_path / preset / "model.safetensors")
        found = {name: tensor for name, tensor in stored[preset].items() if name.endswith("_scale_inv")}
        powers = [bool((torch.frexp(scale).mantissa == 0.5).all()) for scale in found.values()]
        assert all(powers) if rule == "powers" else not any(powers)
        assert {scale.dtype for scale in found.values()} == {torch.float32}
        quantization = json.loads((tmp_path / preset / "config.json").read_text())["quantization_config"]
        assert quantization.get("scale_fmt") == ("ue8m0" if rule == "powers" else None)
    v32 = stored["v32-nano"]
    assert v32["model.layers.1.mlp.experts.7.down_proj.weight_scale_inv"].shape == (2, 1)
    assert v32["model.layers.3.self_attn.indexer.wk.weight"].dtype is torch.float8_e4m3fn
    for name in ("lm_head", "model.layers.3.eh_proj", "model.layers.1.mlp.gate",
                 "model.layers.0.self_attn.indexer.weights_proj"):
        assert v32[f"{name}.weight"].dtype is torch.bfloat16 and f"{name}.weight_scale_inv" not in v32
    assert v32["model.layers.1.mlp.gate.e_score_correction_bias"].dtype is torch.float32
    codes = stored["v3-nano"]["model.layers.0.mlp.up_proj.weight"].float()
    assert codes.abs().amax() == 448.0 and "lm_head.weight" not in stored["qwen3-nano"]


def test_fp8_scales_in_bf16_are_read_and_kept(tmp_path):
    model = random_model(small("qwen3-moe-nano"))
    save_checkpoint(model, model.config, tmp_path / "ours", format="fp8")
    path = tmp_path / "ours" / "model.safetensors"
    tensors = {name: tensor.bfloat16() if name.endswith("_scale_inv") else tensor
               for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    again, loaded = load_model(tmp_path / "ours", Ops())
    name = "model.layers.1.self_attn.o_proj.weight"
    spread = tensors[name + "_scale_inv"].float().repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert torch.equal(again.get_parameter("layers.1.attn.wo.weight"), tensors[name].float() * spread[:160, :128])
    save_checkpoint(again, loaded.config, tmp_path / "again", format="fp8", scales=loaded.scales)
    kept = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(kept[name].view(torch.uint8), tensor.view(torch.uint8)) for name, tensor in tensors.items())


def edited(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_copies_that_the_model_shares_are_passed_over(tmp_path):
    mtp = ("model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight")
    for preset, copies in (("v3-nano", mtp), ("qwen3-nano", ("lm_head.weight",))):
        model = random_model(small(preset))
        save_checkpoint(model, model.config, tmp_path / preset, format="fp32")
        edited(tmp_path / preset, lambda tensors, copies=copies: tensors.update(
            {name: tensors["model.embed_tokens.weight"].clone() for name in copies}))
        assert same_weights(model, load_model(tmp_path / preset, Ops())[0])


def test_what_is_wrong_with_a_checkpoint_is_said_in_published_names(tmp_path):
    model = random_model(small("v32-nano"))
    save_checkpoint(model, model.config, tmp_path / "bad", format="fp8")

    def spoil(tensors):
        del tensors["model.layers.0.mlp.gate_proj.weight_scale_inv"], tensors["model.layers.3.enorm.weight"]
        tensors["model.layers.3.eh_proj.weight"] = torch.zeros(160, 160, dtype=torch.bfloat16)
        tensors["model.layers.4.enorm.weight"] = torch.zeros(3)

    edited(tmp_path / "bad", spoil)
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path / "bad", Ops())
    for words in ("missing: model.layers.0.mlp.gate_proj.weight_scale_inv, the scale of", "extra: model.layers.4.enorm",
                  "missing: model.layers.3.enorm.weight", "loads a model without its MTP block",
                  "misshapen: model.layers.3.eh_proj.weight is [160, 160], the configuration needs [160, 320]"):
        assert words in str(error.value)
    with pytest.raises(InputError, match="has no layout in fp4: use fp8"):
        save_checkpoint(model, model.config, tmp_path / "out", format="fp4")


def test_a_text_may_end_with_any_of_the_models_end_tokens(tmp_path):
    words = open_tokenizer("anychip-4096")
    for ends in ((3, 1), (3, 4)):
        model = random_model(small("glm5-nano", vocab_size=4096, eos_token_id=ends))
        save_checkpoint(model, model.config, tmp_path / str(ends), tokenizer=words)
    assert open_model(tmp_path / "(3, 1)", open_chip("cpu:reference"))[0].config.eos_token_id == (3, 1)
    with pytest.raises(InputError, match=r"a text ends with id 1, for the model with \(3, 4\)"):
        open_model(tmp_path / "(3, 4)", open_chip("cpu:reference"))


def test_a_published_mtp_block_is_split_into_the_models_two_projections(tmp_path):
    model = random_model(small("v3-nano"))
    save_checkpoint(model, model.config, tmp_path / "out", format="fp32")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        joined = file.get_tensor("model.layers.3.eh_proj.weight")
    assert torch.equal(joined[:, :160], model.get_parameter("mtp.0.e_proj.weight"))
    assert torch.equal(joined[:, 160:], model.get_parameter("mtp.0.h_proj.weight"))
    fresh = Transformer(model.config, Ops())
    load_checkpoint(tmp_path / "out", fresh)
    assert same_weights(model, fresh)


@pytest.mark.parametrize("preset", [*FAMILIES, "deepseek-v3", "glm-5.2", "qwen3-0.6b"])
def test_config_json_survives_transformers_form(preset, tmp_path):
    hf = pytest.importorskip("transformers")
    config = load_config(preset)
    assert from_transformers(transformers_config(config, "float32")) == config
    hf.AutoConfig.for_model(**transformers_config(config, "float32")).save_pretrained(tmp_path)
    names = [f"model.layers.{config.num_hidden_layers}.enorm.weight"]
    assert read_config(tmp_path, names) == config
    assert read_config(tmp_path).num_nextn_predict_layers == 0
    wrong = json.loads((tmp_path / "config.json").read_text())
    wrong["rope_parameters"]["rope_type"] = "llama3"
    (tmp_path / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(ConfigError, match="llama3"):
        read_config(Path(tmp_path), names)
