"""The planner against published runs, its serving side, and the command."""

from __future__ import annotations

import csv
import io
import json
from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anychip.cli import build
from anychip.errors import InputError
from anychip.plan.as_json import validation_json
from anychip.plan.cluster import parse_cluster
from anychip.plan.constants import constants
from anychip.plan.cost import Spent, compare, cost_of, given_price
from anychip.plan.expect import expect
from anychip.plan.fit import Serving
from anychip.plan.layout_text import parse_layout
from anychip.plan.models import find_model
from anychip.plan.parallel import Parallel
from anychip.plan.pools import Request, plan_pools
from anychip.plan.rows import read_rows
from anychip.plan.serve import Traffic, largest_batch, plan_decode, plan_prefill
from anychip.plan.train import TrainJob, TrainPlan, plan_train
from anychip.plan.validate import GROUPS, TARGETS, Validation, held_out_linear, validate


@pytest.fixture(scope="module")
def judged() -> Validation:
    return validate(folds=0, trace=False)


def test_every_row_is_judged_or_its_reason_is_told(judged: Validation) -> None:
    assert len(judged.judged) + len(judged.unusable) == len(read_rows()) == 322
    assert all(len(reason) > 15 for _, reason in judged.unusable)


@pytest.mark.parametrize("group", list(TARGETS))
def test_errors_are_within_their_targets(judged: Validation, group: str) -> None:
    count, median, high = judged.summary(group)
    assert count >= 45 and median <= TARGETS[group][0] and high <= TARGETS[group][1]


def test_failure_rows_with_rate_and_size_are_within_a_factor_of_1_25(judged: Validation) -> None:
    rows = judged.of(GROUPS[3])
    assert len(rows) >= 5 and all(1 / 1.25 < j.predicted / j.published < 1.25 for j in rows)


def test_constants_name_the_rows_that_they_were_fitted_on(judged: Validation) -> None:
    c = constants()
    assert set(c.fitted_on("train.product_bf16")) == {j.row["id"] for j in judged.of(GROUPS[0])}
    assert set(c.fitted_on("serve.memory")) == {j.row["id"] for j in judged.of(GROUPS[2])}
    assert c.fitted_on("stack.modellink")[0] == "MLK-3" and not c.fitted_on("train.memory")
    found = validation_json(judged)["constants"]["stack.automodel"]
    assert found["low"] < found["value"] < found["high"] and "AM-9" in found["fitted_on"]


def test_a_step_in_several_passes_fills_the_pipeline_each_time() -> None:
    model, cluster = find_model("llama3-8b"), parse_cluster("8xh100")
    whole, twice = (plan_train(model, cluster, Parallel(2, 1, 4), TrainJob(32, 4096, passes=passes))
                    for passes in (1, 2))
    assert twice.parts_s["pipeline bubble"] == pytest.approx(2 * whole.parts_s["pipeline bubble"], rel=0.01)
    assert twice.parts_s["compute and transfers"] == pytest.approx(whole.parts_s["compute and transfers"])


def test_a_card_of_two_dies_is_two_devices(judged: Validation) -> None:
    row = next(j for j in judged.judged if j.row["id"] == "TTN-1")
    assert "DP128" in row.note and row.row["n_chips"] == "64"


def test_a_held_out_row_cannot_pull_its_own_prediction() -> None:
    from anychip.plan.calibrate import Observation

    c = constants()
    name = "train.product_bf16"
    observations = [Observation(str(i), 1.0, 2.0 * c[name] if i else 8.0 * c[name]) for i in range(10)]
    errors = held_out_linear(observations, lambda case, k: 2.0 * case * k[name], c, [name], 10)
    assert errors[0] == pytest.approx(-0.75, abs=0.02)


def test_rows_of_a_file_are_judged_alike(tmp_path: Path, judged: Validation) -> None:
    text = (files("anychip.plan") / "published.csv").read_text()
    lines = [row for row in csv.DictReader(io.StringIO(text)) if row["id"] in ("TT24-1", "V4F-950-3", "WT-1")]
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    found = validate(path, folds=0, trace=False)
    same = {j.row["id"]: j.predicted for j in judged.judged}
    assert {j.row["id"]: j.predicted for j in found.judged} == {name: same[name] for name in ("TT24-1", "V4F-950-3")}
    path.write_text("id,model\nx,y\n")
    with pytest.raises(InputError, match="lacks the column"):
        validate(path)


def test_longer_contexts_larger_batches_and_fewer_drafts_slow_decode_down() -> None:
    model, cluster, serving = find_model("v4-flash"), parse_cluster("128xascend910c"), Serving("w8a8", "bf16")
    base = plan_decode(model, cluster, serving, Traffic(2048, 8192, 1, 0.7))
    assert plan_decode(model, cluster, serving, Traffic(2048, 262144, 1, 0.7)).step_s > base.step_s
    more = plan_decode(model, cluster, serving, Traffic(8192, 8192, 1, 0.7))
    assert more.step_s > base.step_s and more.tokens_per_s > base.tokens_per_s
    assert plan_decode(model, cluster, serving, Traffic(2048, 8192)).token_s > base.token_s
    assert sum(base.parts_s.values()) == pytest.approx(base.step_s)


def test_the_largest_batch_meets_its_latency_and_the_next_does_not() -> None:
    model, cluster, serving = find_model("v4-flash"), parse_cluster("64xascend910c"), Serving("w8a8", "bf16")
    plan = largest_batch(model, cluster, serving, Traffic(1, 4096), 0.05)
    batch = plan.tokens_per_s * plan.step_s
    assert plan.token_s <= 0.05
    assert plan_decode(model, cluster, serving, Traffic(batch + 64, 4096)).token_s > 0.05
    with pytest.raises(InputError, match="asked were 0.1 ms: take more devices"):
        largest_batch(model, cluster, serving, Traffic(1, 4096), 1e-4)


def test_cached_prompts_are_not_computed() -> None:
    model, cluster, serving = find_model("v4-flash"), parse_cluster("32xascend910c"), Serving("w8a8", "bf16")
    cold, warm = (plan_prefill(model, cluster, serving, 8192, 8192, hit=hit) for hit in (0.0, 0.5))
    assert warm.tokens_per_s == pytest.approx(cold.tokens_per_s, rel=0.2)  # of computed tokens
    with pytest.raises(InputError, match="leaves nothing to compute"):
        plan_prefill(model, cluster, serving, 8192, 8192, hit=1.0)


def test_pools_share_the_devices_and_users_wait_for_queue_and_pass() -> None:
    pools = plan_pools(find_model("v4-flash"), parse_cluster("64xascend910c"), Serving("w8a8", "bf16"),
                       Request(4096, 512, drafts=1, accepted=0.7))
    assert pools.prefill_devices + pools.decode_devices == 64
    assert pools.seen.first_s[0] >= pools.prefill.step_s and pools.seen.first_s[1] > pools.seen.first_s[0]
    assert pools.seen.token_s[0] <= 0.05


def test_a_users_speed_is_placed_and_the_shortfall_explained() -> None:
    plan = plan_decode(find_model("v4-flash"), parse_cluster("128xascend910c"), Serving("w8a8", "bf16"),
                       Traffic(7168, 8192, 1, 0.7, balanced=True))
    slow, usual, wrong = (expect(plan, mine, spread=0.4) for mine in (400, plan.tokens_per_s_device, 1e6))
    assert "below the plan" in slow.verdict and len(slow.causes) == 3
    assert usual.verdict.startswith("normal") and not usual.causes and "two dies" in wrong.verdict
    assert slow.published is not None and slow.published.tokens_per_s_device == 4388 / 2
    assert slow.low < slow.planned < slow.high < slow.bound * 2


def test_the_founding_question_is_answered_in_one_sentence() -> None:
    first, second = (parse_cluster(text).facts for text in ("8xh100", "8xascend910c"))
    spent = [Spent("8 x h100", 10, 0.5, cost_of(first, 80, given_price(2))),
             Spent("8 x ascend910c", 15, None, cost_of(second, 120, given_price(1)))]
    assert "50 % more time" in compare(*spent).sentence() and "no rate of this chip is published" in compare(
        *spent).sentence()


def test_a_layout_is_read_from_its_shorthand() -> None:
    assert parse_layout("TP4 PP8 VP2 EP32 MBS1 FSDP recompute=full") == {
        "tensor": 4, "pipeline": 8, "virtual": 2, "expert": 32, "micro_batch": 1, "shard": "full", "recompute": "full",
        "schedule": "interleaved"}
    with pytest.raises(InputError, match="cannot hold 'TX4'"):
        parse_layout("TX4")


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(build(), ["plan", *words])
    return result.exit_code, result.output


def test_the_command_answers_fit_and_train_in_json() -> None:
    code, text = run("fit", "v4-flash", "--chips", "8x910b4_32g", "--json")
    assert code == 0 and [fit["fits"] for fit in json.loads(text)] == [False, False, True, False, True]
    code, text = run("train", "llama3-8b", "--chips", "8xh100", "--vs", "8xascend910b2", "--batch", "262144",
                     "--layout", "MBS1 FSDP recompute=full", "--precision", "bf16", "--json")
    found = json.loads(text)
    assert code == 0 and len(found["plans"]) == 2 and "more time" in found["run"]["answer"]
    assert found["plans"][0]["step"]["kind"] == "simulated" and found["plans"][0]["memory"]["fits"]


def test_two_plans_become_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: Validation) -> None:
    monkeypatch.setattr("anychip.plan.page.validate", lambda folds, trace: judged)
    code, _ = run("train", "llama3-8b", "--chips", "8xh100", "--vs", "8xb200", "--batch", "262144", "--layout",
                  "PP2 MBS1 recompute=full", "--precision", "bf16", "--html", str(tmp_path / "plan.html"))
    page = (tmp_path / "plan.html").read_text()
    assert code == 0 and page.count("<svg") == 2 and page.count('fill="#4477aa"') == 2 * 2 * 16
    assert "simulated" in page and "less time" in page and "<script" not in page and "http" not in page


def test_serving_and_reliability_have_pages_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judged: Validation
                                                ) -> None:
    monkeypatch.setattr("anychip.plan.page.validate", lambda folds, trace: judged)
    code, _ = run("serve", "qwen3-30b-a3b", "--chips", "8xascend910c", "--weights", "w8a8", "--sequences", "64",
                  "--html", str(tmp_path / "serve.html"))
    page = (tmp_path / "serve.html").read_text()
    assert code == 0 and "Where a pass goes" in page and "published runs: serving" in page
    code, text = run("reliability", "--chips", "1024xascend910c", "--days", "3", "--json", "--html",
                     str(tmp_path / "rates.html"))
    page = (tmp_path / "rates.html").read_text()
    assert code == 0 and len(json.loads(text[text.index("{"):])["sensitivity"]) == 6
    assert page.count("<polyline") == 1 and "ascend910c is unknown" in page


@pytest.mark.parametrize(("words", "message"), [
    (("fit", "v4-flash", "--chips", "8xh100", "--weights", "fp5"), "no weight format 'fp5'"),
    (("train", "v4-flash", "--chips", "64xh100", "--batch", "1000"), "not a whole number of sequences"),
    (("serve", "v4-flash", "--chips", "64xh100", "--accepted", "2"), "accepted=2"),
    (("expect", "v4-flash", "--chips", "64xh100", "--mine", "-3"), "above 0")])
def test_bad_input_ends_with_two_and_one_message(words: tuple[str, ...], message: str) -> None:
    code, text = run(*words)
    assert code == 2 and message in text


def test_an_unknown_failure_rate_is_said_and_shown_as_a_sensitivity() -> None:
    code, text = run("reliability", "--chips", "1024xascend910c", "--days", "3")
    assert code == 0 and "failure rate of ascend910c is unknown" in text and text.count("per 1,000 node-days:") == 6


def test_the_bound_of_training_is_all_products_at_peak() -> None:
    from anychip.plan.expect import roofline_bound

    plan: TrainPlan = plan_train(find_model("llama3-8b"), parse_cluster("8xh100"), Parallel(8, shard="full"),
                                 TrainJob(64, 8192))
    assert roofline_bound(plan) == pytest.approx(989.4e12 / 51.5e9, rel=0.01)
    assert plan.tokens_per_s_device < roofline_bound(plan)
