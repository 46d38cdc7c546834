"""What a broken checkpoint or an unwritable place makes the user read; nothing stays half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_cases import files_of, random_model, small_config
from safetensors.torch import load_file, save_file
from torch import Tensor

from anychip.checkpoint import (
    CheckpointFolder,
    convert,
    digest,
    load_checkpoint,
    load_model,
    save_checkpoint,
    writing,
)
from anychip.errors import CheckpointError, ConfigError, InputError
from anychip.model import Transformer
from anychip.ops import Ops

Edit = Callable[[dict[str, Tensor]], None]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    model = random_model(small_config())
    save_checkpoint(model, model.config, tmp_path / "ckpt", format="fp8")
    return tmp_path / "ckpt"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    model = random_model(small_config())
    save_checkpoint(model, model.config, tmp_path / "sharded", format="fp32", shard_bytes=300_000)
    return tmp_path / "sharded"


def edit(folder: Path, change: Edit) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def message(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder, Transformer(small_config(), Ops()))
    return str(error.value)


def test_every_problem_is_named_in_one_error(good: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["layers.0.attn.wq_a.weight"], tensors["layers.0.attn.wq_a.scale"]
        del tensors["layers.1.attn.wkv.scale"]
        tensors["layers.7.attn_norm.weight"] = torch.zeros(160)
        tensors["layers.1.attn.attn_sink"] = torch.zeros(5)
        tensors["layers.2.attn.attn_sink"][1] = torch.nan
        tensors["norm.weight"] = torch.zeros(160, dtype=torch.int32)
        tensors["layers.0.ffn.gate.tid2eid"][3, 1] = 4
        tensors["layers.2.ffn.experts.3.w2.weight"].view(torch.uint8)[0, 0] = 0x7F

    edit(good, spoil)
    text = message(good)
    for line in (
        "cannot be loaded: 2 missing, 1 misshapen, 1 wrong dtype, 1 extra, 1 out of range, 2 not finite\n",
        "missing: layers.0.attn.wq_a.weight\n",
        "missing: layers.1.attn.wkv.scale, the scale of layers.1.attn.wkv.weight",
        "extra: layers.7.attn_norm.weight F32 [160]",
        "misshapen: layers.1.attn.attn_sink is [5], the configuration needs [4]",
        "wrong dtype: norm.weight is I32; a tensor of the kind DENSE is stored as BF16",
        "not finite: layers.2.attn.attn_sink has 1 NaN or Inf of 4",
        "not finite: layers.2.ffn.experts.3.w2.weight has 1 NaN or Inf of 5120",
        "out of range: layers.0.ffn.gate.tid2eid has expert ids 0 to 4; there are 4 experts",
    ):
        assert line in text + "\n"


def test_a_long_list_is_cut_and_counted(good: Path) -> None:
    def drop_mtp(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("mtp.")]:
            del tensors[name]

    edit(good, drop_mtp)
    text = message(good)
    assert text.count("\n  missing: mtp.0.") == 20 and "missing: and " in text
    assert "num_nextn_predict_layers=0 in config.json loads a model without its MTP block" in text


def test_draft_blocks_are_not_taken_for_an_mtp_block(good: Path) -> None:
    edit(good, lambda tensors: tensors.update({"mtp.1.main_proj.weight": torch.zeros(2, 2)}))
    assert "DSpark draft blocks, not an MTP block" in message(good)


def test_the_mtp_blocks_copies_of_embedding_and_head_are_passed_over(good: Path) -> None:
    before = digest(good)
    copies = {"mtp.0.emb.weight": torch.zeros(2), "mtp.0.head.weight": torch.zeros(2)}
    edit(good, lambda tensors: tensors.update(copies))
    load_checkpoint(good, Transformer(small_config(), Ops()))
    assert digest(good) == before


def test_a_scale_without_a_quantised_weight_is_extra(good: Path) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        tensors["layers.0.attn.wkv.weight"] = torch.zeros(64, 160)

    edit(good, widen)
    assert "extra: layers.0.attn.wkv.scale F8_E8M0 [1, 2]" in message(good)


@pytest.mark.parametrize("keep", [0, 4, 100, -5])
def test_a_truncated_file_is_named(good: Path, keep: int) -> None:
    path = good / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    text = message(good)
    assert "corrupt shard: model.safetensors (" in text and "truncated or corrupt" in text
    assert "missing" not in text  # 400 names would hide the reason


def test_lost_corrupt_and_mislabelled_shards_are_all_named(sharded: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    moved = next(name for name, shard in index["weight_map"].items() if shard == shards[0].name)
    index["weight_map"][moved] = shards[3].name
    index["weight_map"]["../x"] = "../outside.safetensors"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    shards[1].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    text = message(sharded)
    assert f"missing shard: {shards[1].name}" in text and f"corrupt shard: {shards[2].name}" in text
    assert f"index: {moved} should be in {shards[3].name} but is in {shards[0].name}" in text
    assert "'../outside.safetensors' is not a file name in this folder" in text
    with pytest.raises(CheckpointError, match="2 index"):
        CheckpointFolder(sharded).raise_if_damaged()


def test_an_index_that_misses_names_is_named(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = index["weight_map"].pop("head.weight")
    index["weight_map"]["ghost"] = shard
    path.write_text(json.dumps(index))
    text = message(sharded)
    assert f"index: head.weight of {shard} is not in" in text and f"index: ghost should be in {shard}" in text
    path.write_text("{")
    assert "cannot be read" in message(sharded)
    path.unlink()
    assert "shards but no model.safetensors.index.json" in message(sharded)


def test_no_checkpoint_at_all_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
        load_model(tmp_path / "nowhere", Ops())
    with pytest.raises(CheckpointError, match=r"holds no \*.safetensors file"):
        load_model(tmp_path, Ops())


def test_a_missing_or_broken_config_json_is_named(good: Path) -> None:
    (good / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json is not JSON"):
        load_model(good, Ops())
    (good / "config.json").unlink()
    with pytest.raises(ConfigError, match="config.json cannot be read"):
        load_model(good, Ops())


def test_a_model_on_the_meta_device_is_refused(good: Path) -> None:
    with torch.device("meta"):
        model = Transformer(small_config(), Ops())
    with pytest.raises(InputError, match="meta device"):
        load_checkpoint(good, model)


def test_a_model_with_nan_is_not_saved(tmp_path: Path) -> None:
    model = random_model(small_config())
    with torch.no_grad():
        model.get_parameter("layers.1.ffn.experts.w13")[2, 40, 0] = torch.nan
        model.get_parameter("embed.weight")[0, 0] = 3.4e38
    with pytest.raises(CheckpointError) as error:
        save_checkpoint(model, model.config, tmp_path / "out")
    assert "layers.1.ffn.experts.2.w3.weight holds NaN or Inf" in str(error.value)
    assert "embed.weight has 3.4e+38, more than bf16 can hold" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_target_is_refused_and_kept(good: Path) -> None:
    before = files_of(good)
    model = random_model(small_config())
    with pytest.raises(InputError, match="already exists and is not an empty folder"):
        save_checkpoint(model, model.config, good)
    assert files_of(good) == before


def test_an_empty_target_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    model = random_model(small_config())
    save_checkpoint(model, model.config, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert os.stat(tmp_path / "out").st_mode & 0o077 == os.stat(tmp_path).st_mode & 0o077 or os.getuid() == 0


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = random_model(small_config())
    for target in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/anychip/out")):
        with pytest.raises(InputError, match="cannot write|already exists"):
            save_checkpoint(model, model.config, target)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ZeroDivisionError()]
)
def test_a_crash_while_writing_leaves_nothing(
    good: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writing.FolderWriter.write
    calls: list[str] = []

    def failing(self: writing.FolderWriter, name: str, tensor: Tensor) -> None:
        calls.append(name)
        if len(calls) == 50:
            raise error
        real(self, name, tensor)

    monkeypatch.setattr(writing.FolderWriter, "write", failing)
    with pytest.raises(InputError if isinstance(error, OSError) else type(error)):
        convert(good, good.parent / "out", format="bf16")
    assert [path.name for path in good.parent.iterdir()] == ["ckpt"]


def test_a_non_finite_source_is_not_converted(good: Path) -> None:
    edit(good, lambda tensors: tensors.update({"hc_head_scale": torch.tensor([torch.inf])}))
    with pytest.raises(CheckpointError, match="not finite: hc_head_scale"):
        convert(good, good.parent / "out")
    assert [path.name for path in good.parent.iterdir()] == ["ckpt"]
