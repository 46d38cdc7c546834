"""Load on a server: the figures are those of the answers, arrivals those asked for, every failure is kept whole."""

import asyncio
import json

import pytest
from serve_cases import ScriptedEngine, serving

from anychip.bench.client import Answer, Target, first_model
from anychip.bench.serving import Goal, run_load, summary
from anychip.bench.soak import Plan, leak, mtbf, soak_server
from anychip.bench.workload import Ask, Workload, like_sharegpt, prompt_of, read_mix
from anychip.errors import InputError
from anychip.serve.request import Busy


def test_bench_counts_tokens_and_refusals() -> None:
    engine = ScriptedEngine(lambda _: "one two three four")
    submit, left = engine.submit, [3]

    def full(request):
        left[0] -= 1
        if left[0] < 0:
            raise Busy("full", 1)
        return submit(request)

    engine.submit = full
    workload = Workload((Ask(5, 3),) * 5, None, 2, 0)
    with serving(engine) as (url, _log):
        assert first_model(Target(url, "")) == "test"
        found = summary(*asyncio.run(run_load(Target(url, "test"), workload, 30)), workload, Goal(10, 10))
    assert (found["complete"], found["refused_429"], found["errors"]) == (3, 2, {})
    assert found["new_tokens"] == 9 and found["goodput"]["share"] == 0.6 and found["ttft_s"]["p99"] < 30


def test_good_answers_are_fast_to_begin_and_to_go_on() -> None:
    answer = Answer(200, "x", "stop", new_tokens=11, first_s=1.0, total_s=2.0)
    assert Goal(1.0, 0.1).met(answer) and not Goal(0.9, 0.1).met(answer) and not Goal(1.0, 0.09).met(answer)


def test_arrivals_and_lengths_are_those_asked_for(tmp_path) -> None:
    asks = like_sharegpt(2000, 0, 4000)
    arrivals = Workload(tuple(asks), 4.0, 1, 0).arrivals_s()
    assert arrivals[-1] / 2000 == pytest.approx(0.25, rel=0.1) and arrivals == sorted(arrivals)
    assert sorted(a.prompt_words for a in asks)[1000] == pytest.approx(40, rel=0.1)
    (tmp_path / "mix").write_text('{"prompt_words": 7, "new_tokens": 2}\n')
    assert read_mix(tmp_path / "mix", 3, 0) == [Ask(7, 2)] * 3 and len(prompt_of(Ask(7, 2), 0, 0).split()) == 8
    (tmp_path / "mix").write_text("{}")
    with pytest.raises(InputError, match="must have lines like"):
        read_mix(tmp_path / "mix", 3, 0)


def test_soak_keeps_what_fails(tmp_path) -> None:
    engine = ScriptedEngine(lambda prompt: 1 / 0 if "the" in prompt else "fine")
    with serving(engine) as (url, _log):
        found = asyncio.run(soak_server(Target(url, "test"), Plan(0.5, 2, 0, tmp_path), lambda _: None))
    assert found["failures"] >= 1
    bundle = json.loads(next(tmp_path.glob("failure-*[0-9].json")).read_text())
    assert bundle["status"] == 500 and "the" in bundle["body"]["messages"][0]["content"]
    assert "curl" in bundle["reproduce"]


def test_mean_time_between_failures_and_leak_are_known_values() -> None:
    assert mtbf(3000, 0) == {"mean": None, "low": pytest.approx(3000 / 2.9957, rel=1e-3), "high": None}
    assert mtbf(1000, 4) == {"mean": 250, "low": pytest.approx(97.7, rel=0.01), "high": pytest.approx(917.6, rel=0.01)}
    assert leak([(t, 1000 + 5 * t) for t in range(40)])["bytes_per_s"] == pytest.approx(5) and leak([(0, 1)]) is None
