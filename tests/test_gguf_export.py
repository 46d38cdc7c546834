"""The GGUF has llama.cpp's names and our numbers; what cannot be exported is refused in full."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import nano, vivid_model
from torch import Tensor

from anychip.config import ModelConfig, load_config
from anychip.errors import CheckpointError, NotSupported
from anychip.model import Transformer
from anychip.ops import Ops

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")

from benchmarks.gguf_export import export_gguf, gguf_names, unsupported  # noqa: E402


@pytest.fixture(scope="module")
def model() -> Transformer:
    return vivid_model(dataclasses.replace(nano(), index_head_dim=128), Ops())


@pytest.fixture(scope="module")
def exported(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("gguf") / "nano.gguf"
    export_gguf(path, model.config, model.state_dict().items())
    return gguf.GGUFReader(path)


def test_every_tensor_arrives_under_llama_cpp_s_name_with_the_same_numbers(model: Transformer, exported: Any) -> None:
    read = {tensor.name: tensor.data for tensor in exported.tensors}
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("mtp.")}
    for name, value in kept.items():
        parts = [read.pop(gguf_name) for gguf_name in gguf_names(name)]
        assert np.array_equal(np.concatenate(parts, axis=1 if len(parts) == 2 else 0), value.numpy()), name
    assert not read


def test_the_gate_comes_before_up_in_stacked_experts(model: Transformer, exported: Any) -> None:
    read = {tensor.name: tensor.data for tensor in exported.tensors}
    width = model.config.moe_intermediate_size
    w13 = model.layers[0].ffn.experts.w13.detach().numpy()  # type: ignore[union-attr,operator]
    assert np.array_equal(read["blk.0.ffn_gate_exps.weight"], w13[:, :width])
    assert np.array_equal(read["blk.0.ffn_up_exps.weight"], w13[:, width:])


def test_the_metadata_says_what_the_configuration_says(model: Transformer, exported: Any) -> None:
    c = model.config
    read = {key: field.contents() for key, field in exported.fields.items()}
    assert read["deepseek4.attention.compress_ratios"] == list(c.compress_ratios[:c.num_hidden_layers])
    assert read["deepseek4.attention.indexer.top_k"] == c.index_topk
    assert read["deepseek4.rope.dimension_count"] == c.qk_rope_head_dim
    assert read["deepseek4.attention.compress_rope_freq_base"] == c.compress_rope_theta
    assert read["deepseek4.swiglu_clamp_shexp"] == [c.swiglu_limit] * c.num_hidden_layers
    assert c.rope_scaling is not None
    assert read["deepseek4.rope.scaling.factor"] == c.rope_scaling.factor


def test_missing_unknown_and_misshapen_tensors_are_named_together_and_nothing_is_left(
        model: Transformer, tmp_path: Path) -> None:
    tensors = dict(model.state_dict())
    del tensors["head.weight"]
    tensors["layers.0.attn.wkv.weight"] = torch.zeros(3, 5)
    tensors["layers.9.attn_norm.weight"] = torch.zeros(128)
    with pytest.raises(CheckpointError) as caught:
        export_gguf(tmp_path / "bad.gguf", model.config, tensors.items())
    for words in ("head.weight: missing", "layers.0.attn.wkv.weight: has shape (3, 5)", "layers.9.attn_norm.weight: "):
        assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_source_that_fails_half_way_leaves_the_old_file(model: Transformer, tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, Tensor]]:
        yield "embed.weight", model.embed.weight
        raise OSError("the disk went away")

    (tmp_path / "model.gguf").write_text("old")
    with pytest.raises(OSError, match="went away"):
        export_gguf(tmp_path / "model.gguf", model.config, broken())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.gguf", "old")]


def test_what_llama_cpp_cannot_run_is_refused_with_every_reason(tmp_path: Path) -> None:
    config = dataclasses.replace(nano(), index_head_dim=192, hc_mult=2)
    with pytest.raises(NotSupported) as caught:
        export_gguf(tmp_path / "no.gguf", config, [])
    assert "hc_mult=2" in str(caught.value) and "index_head_dim=192" in str(caught.value)
    equal = dataclasses.replace(nano(), index_head_dim=64)
    assert [reason.split(":")[0] for reason in unsupported(equal)] == ["head_dim=64 equals index_head_dim"]


@pytest.mark.parametrize("preset", ["tiny", "mini", "v4-flash", "v4-pro"])
def test_llama_cpp_can_run_the_preset(preset: str) -> None:
    config: ModelConfig = load_config(preset)
    assert unsupported(config) == []
