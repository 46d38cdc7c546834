"""Another engine behind the same front door: its answers pass through, its flags fit the chips, refusals say why."""

import json
import stat
import sys
from dataclasses import replace

import httpx
import pytest
from serve_cases import ScriptedEngine, serving

from anychip.checkpoint.configs import publisher_config
from anychip.config import load_config
from anychip.errors import ChipError, InputError, NotSupported
from anychip.plan.cluster import parse_cluster
from anychip.plan.engine import CONTEXT, TOKEN_S, plan_tensor
from anychip.plan.models import find_model
from anychip.plan.serve import Traffic, largest_batch
from anychip.serve.api.keys import Keys
from anychip.serve.api.proxy import make_proxy
from anychip.serve.api.settings import ApiSettings
from anychip.serve.external import Degrees, EngineProcess, External, plan_engine


def checkpoint(folder, gib: float = 1e-6, heads: int = 8, **fields):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": heads, **fields}))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(int(gib * 2**30))  # sparse: only its size is read
    return folder


@pytest.fixture
def installed(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nraise SystemExit(7)\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent))


def test_without_the_engine_the_install_line_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotSupported, match="pip install vllm vllm-ascend"):
        plan_engine("vllm-ascend", checkpoint(tmp_path / "m"), "m", "ascend910b1", Degrees(8), 1)


def test_flags_fit_the_chips_and_all_reasons_are_said(tmp_path, installed) -> None:
    found = plan_engine("vllm", checkpoint(tmp_path / "m", 160, 64, num_experts=8), "m", "h100", Degrees(2, 2), 9)
    assert found.weight_share == 0.5 and " ".join(found.command).endswith(
        "--port 9 --tensor-parallel-size 2 --data-parallel-size 2 --enable-expert-parallel")
    dense = plan_engine("vllm", checkpoint(tmp_path / "m", 1, 64), "m", "h100", Degrees(4), 9)
    assert " ".join(dense.command).endswith("--port 9 --tensor-parallel-size 4")
    assert Degrees(8, 1).fitted(checkpoint(tmp_path / "m", heads=4)) == Degrees(4, 2)
    with pytest.raises(InputError, match="100% of the memory of 2 h100.*use 3 or more") as wrong:
        plan_engine("vllm", checkpoint(tmp_path / "m", 160, 63), "m", "h100", Degrees(2), 9)
    assert "do not divide num_attention_heads=63: use 1, 3, 7, 9, 21, 63" in str(wrong.value)
    with pytest.raises(InputError, match="runs on Huawei's chips, and h100 is NVIDIA's"):
        plan_engine("vllm-ascend", checkpoint(tmp_path / "m"), "m", "h100", Degrees(), 9)


@pytest.mark.parametrize(("model", "weights"), [("qwen3-30b-a3b", "fp8"), ("qwen3-32b", "bf16")])
def test_the_planner_chooses_the_degree_that_decodes_most_tokens(tmp_path, model, weights) -> None:
    cluster = parse_cluster("8xh100")
    fields = publisher_config(load_config(model), weights)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    chosen = plan_tensor(tmp_path, "h100", 8)
    assert chosen.serving.weights == weights
    others = [largest_batch(find_model(model), cluster, replace(chosen.serving, tensor=each), Traffic(1, CONTEXT),
                            TOKEN_S).tokens_per_s for each in (1, 2, 4, 8)]
    assert max(others) == pytest.approx(chosen.tokens_per_s)


def test_an_engine_that_ends_is_told(installed) -> None:
    with pytest.raises(ChipError, match="ended with 7"), EngineProcess(External(("vllm",), 0.1), 1) as process:
        process.wait_ready(30)


def test_answers_pass_through_and_keys_stay_here() -> None:
    import asyncio

    async def ask(url: str, **options):
        app = make_proxy(url, ApiSettings("test", **options))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://front") as client:
            body = {"model": "test", "messages": [{"role": "user", "content": "Hi"}]}
            return [await client.post("/v1/chat/completions", json=body | {"stream": stream})
                    for stream in (False, True)]

    with serving(ScriptedEngine(lambda _: "Hello")) as (url, _log):
        whole, streamed = asyncio.run(ask(url))
        refused = asyncio.run(ask(url, keys=Keys({"0" * 64: None})))
    assert whole.json()["choices"][0]["message"]["content"] == "Hello" and streamed.text.endswith("data: [DONE]\n\n")
    assert [found.status_code for found in refused] == [401, 401]
    down = asyncio.run(ask("http://127.0.0.1:9"))[0]
    assert down.status_code == 503 and down.json()["error"]["code"] == "engine_stopped"
