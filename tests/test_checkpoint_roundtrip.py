"""A model survives its checkpoint: every format, any number of shards, to the byte."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from checkpoint_cases import files_of, random_model, same_weights, small_config
from safetensors import safe_open

from anychip.checkpoint import (
    FORMATS,
    codec,
    digest,
    load_checkpoint,
    load_model,
    read_config,
    save_checkpoint,
)
from anychip.checkpoint.layout import Role, pieces
from anychip.config import load_config
from anychip.model import Layout, Transformer
from anychip.ops import Ops


def test_fp32_comes_back_exactly_and_runs_the_same(tmp_path: Path) -> None:
    model = random_model(small_config())
    save_checkpoint(model, model.config, tmp_path / "out", format="fp32")
    again, loaded = load_model(tmp_path / "out", Ops())
    assert loaded.format == "fp32" and loaded.config == model.config and not loaded.scales
    assert same_weights(model, again)
    ids = torch.arange(150) % 160
    logits = [m.logits(m(ids, Layout.whole([150])).hidden_Td) for m in (model, again)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("format", FORMATS)
def test_reading_then_writing_gives_the_same_bytes(format: str, tmp_path: Path) -> None:
    model = random_model(small_config())
    with torch.no_grad():
        model.state_dict()["layers.0.ffn.experts.w13"][0].mul_(1e-6)  # below FP8's amax floor
        model.state_dict()["layers.1.attn.wq_a.weight"].zero_()
    save_checkpoint(model, model.config, tmp_path / "first", format=format)
    for dtype in (torch.float32, torch.bfloat16) if format != "fp32" else (torch.float32,):
        target = Transformer(model.config, Ops())
        loaded = load_checkpoint(tmp_path / "first", target)
        assert loaded.format == format
        if dtype is torch.bfloat16:
            target = target.to(dtype).float()  # power-of-two scales: FP8 and FP4 values are exact in bf16 too
            load_exact_fp32(tmp_path / "first", target)
        out = tmp_path / f"again-{dtype}"
        save_checkpoint(target, loaded.config, out, format=format, scales=loaded.scales)
        assert files_of(out) == files_of(tmp_path / "first")


def load_exact_fp32(folder: Path, model: Transformer) -> None:
    """Restore the tensors that the publisher keeps in FP32, which a pass through bf16 has rounded."""
    with safe_open(folder / "model.safetensors", "pt") as file, torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in file.keys() and file.get_slice(name).get_dtype() == "F32":  # noqa: SIM118
                tensor.copy_(file.get_tensor(name))


def test_values_need_no_remembered_scales_but_bytes_do(tmp_path: Path) -> None:
    model = random_model(small_config())
    save_checkpoint(model, model.config, tmp_path / "first", format="fp4")
    first, loaded = load_model(tmp_path / "first", Ops())
    save_checkpoint(first, loaded.config, tmp_path / "derived", format="fp4")
    assert same_weights(first, load_model(tmp_path / "derived", Ops())[0])
    assert digest(tmp_path / "derived") != digest(tmp_path / "first")


def test_quantised_formats_store_what_the_publisher_stores(tmp_path: Path) -> None:
    model = random_model(small_config())
    save_checkpoint(model, model.config, tmp_path / "out", format="fp4")
    expected = {
        "layers.1.ffn.experts.3.w1.weight": ("I8", [32, 80]),
        "layers.1.ffn.experts.3.w1.scale": ("F8_E8M0", [32, 5]),
        "layers.1.attn.wq_b.weight": ("F8_E4M3", [256, 32]),
        "layers.1.attn.wo_b.scale": ("F8_E8M0", [2, 1]),
        "layers.1.attn.indexer.wq_b.weight": ("F8_E4M3", [512, 32]),
        "layers.1.attn.indexer.weights_proj.weight": ("BF16", [16, 160]),
        "layers.1.attn.compressor.ape": ("F32", [4, 128]),
        "layers.1.ffn.shared_experts.w2.weight": ("F8_E4M3", [160, 32]),
        "layers.1.ffn.gate.bias": ("F32", [4]),
        "layers.0.ffn.gate.tid2eid": ("I64", [160, 2]),
        "mtp.0.e_proj.scale": ("F8_E8M0", [2, 2]),
        "layers.2.hc_attn_fn": ("F32", [24, 640]),
    }
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        found = {n: (file.get_slice(n).get_dtype(), file.get_slice(n).get_shape()) for n in expected}
    assert found == expected
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["expert_dtype"] == "fp4" and config["quantization_config"]["weight_block_size"] == [
        128,
        128,
    ]


def test_fp8_loads_as_its_dequantised_reference(tmp_path: Path) -> None:
    model = random_model(small_config())
    save_checkpoint(model, model.config, tmp_path / "out", format="fp8")
    again = load_model(tmp_path / "out", Ops())[0].state_dict()
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        for name, tensor in (
            ("mtp.0.h_proj", again["mtp.0.h_proj.weight"]),
            ("layers.0.ffn.experts.2.w3", again["layers.0.ffn.experts.w13"][2, 32:]),
        ):
            codes, scale = (
                file.get_tensor(name + ".weight").double(),
                file.get_tensor(name + ".scale").double(),
            )
            spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[
                : codes.shape[0], : codes.shape[1]
            ]
            assert torch.equal(tensor.double(), codes * spread)


def test_shards_are_small_and_load_as_one(tmp_path: Path) -> None:
    model = random_model(small_config())
    save_checkpoint(model, model.config, tmp_path / "out", format="fp8", shard_bytes=100_000)
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(shards) > 5 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(shards)
    save_checkpoint(model, model.config, tmp_path / "whole", format="fp8")
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")
    assert same_weights(load_model(tmp_path / "out", Ops())[0], load_model(tmp_path / "whole", Ops())[0])


def test_the_digest_is_of_names_dtypes_and_bytes(tmp_path: Path) -> None:
    model = random_model(small_config())
    save_checkpoint(model, model.config, tmp_path / "fp32", format="fp32")
    before = digest(model)
    assert digest(tmp_path / "fp32") == before
    with torch.no_grad():
        model.layers[1].attn.attn_sink[0] += 1e-7  # type: ignore[union-attr,index,operator]
    assert digest(model) != before
    save_checkpoint(model, model.config, tmp_path / "bf16", format="bf16")
    assert digest(tmp_path / "bf16") != digest(model)


def test_a_model_without_mtp_round_trips(tmp_path: Path) -> None:
    config = small_config(num_nextn_predict_layers=0, compress_ratios=(0, 4, 128))
    model = random_model(config)
    save_checkpoint(model, config, tmp_path / "out", format="fp32")
    assert same_weights(model, load_model(tmp_path / "out", Ops())[0])


def test_the_tokenizer_goes_beside_the_weights(tmp_path: Path) -> None:
    class Files:
        def save(self, folder: str | Path) -> None:
            (Path(folder) / "tokenizer.json").write_text("{}")

    model = random_model(small_config())
    save_checkpoint(model, model.config, tmp_path / "out", tokenizer=Files())
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert read_config(tmp_path / "out") == model.config


def test_v4_flash_has_exactly_the_published_names_and_numbers() -> None:
    config = load_config("v4-flash")
    found = list(pieces(config))
    count = Counter[Role]()
    for piece in found:
        count[piece.role] += math.prod(piece.shape)
    assert count[Role.TABLE] == 2_327_040  # the three hash tables
    assert (
        round(count[Role.EXPERT] / 44 * 46 / 1e9, 2) == 296.35
    )  # FP4 numbers of Flash-0731: 43 layers, 3 drafts
    assert len({piece.name for piece in found}) == len(found)
    specs = [spec.name for piece in found for spec in codec.form(piece, "fp4").specs()]
    scales = [name for name in specs if name.endswith(".scale")]
    # a scale for each expert matrix, 5 attention matrices, 3 of the shared expert, an indexer's, e_proj and h_proj
    assert len(scales) == 44 * (256 * 3 + 5 + 3) + 21 + 2 and len(specs) == len(found) + len(scales)
