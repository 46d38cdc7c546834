"""`anychip conform`: the vectors are the reference's, right models pass, wrong ones fail by part and by name."""

import json
from dataclasses import replace

import pytest
import torch
from test_cli import anychip, refusal

from anychip.conform.cases import picked, run, shipped
from anychip.conform.judge import Seen, Unable, judge
from anychip.conform.likeness import Signatures, likeness
from anychip.conform.logits import Functions
from anychip.conform.run import judge_file
from anychip.conform.weights import SETS, export, weight_set, widened
from anychip.errors import BundleError, InputError
from anychip.faults import find_fault
from anychip.gap.guided import trace
from anychip.model import Layout
from anychip.ops import Ops


@pytest.fixture(scope="module")
def signatures():
    return Signatures(weight_set("outliers"))


@pytest.fixture(scope="module", params=SETS)
def pair(request):
    return weight_set(request.param), shipped(request.param)


SUSPECTS = [find_fault(name) for name in (
    "window-off-by-one", "own-token-masked", "stale-window-rows", "mtp-on-the-wrong-token", "mtp-on-the-wrong-hidden",
    "window-crosses-samples", "overlap-crosses-samples", "sink-dropped", "gelu-for-silu")]


def functions(model):
    return Functions({"logits": lambda ids: run(model, "whole", (tuple(ids),)), "mtp": lambda ids: run(
        model, "mtp", (tuple(ids),)), "chunked": lambda pieces: run(model, "chunked", pieces),
        "packed": lambda pieces: run(model, "packed", pieces)}, model.config.vocab_size)


def faulty(chosen, name):
    model = chosen.model(find_fault(name).ops(Ops()))
    find_fault(name).prepare(model)
    return functions(model)


def short(suite, *names):
    return replace(suite, cases=tuple(case for case in suite.cases if case.name in names))


def test_the_vectors_belong_to_the_weights_and_are_small(pair):
    chosen, suite = pair
    assert chosen.digest == suite.digest
    assert {case.kind for case in suite.cases} == {"whole", "chunked", "packed", "mtp"}
    assert {1, 127, 128, 129, 257, 1000} <= {len(case.tokens) for case in suite.cases if case.kind == "whole"}


def test_the_reference_passes_every_case(pair):
    chosen, suite = pair
    outcome = judge(functions(chosen.model()), suite, "float32")
    assert [row.verdict for row in outcome.rows] == ["pass"] * len(suite.cases)


def test_outliers_reach_the_clamp_on_both_sides():
    chosen, suite = weight_set("outliers"), shipped("outliers")
    ids = torch.tensor(suite.cases[4].tokens)
    calls = [call for call in trace(chosen.model(), lambda model: model(ids, Layout.whole([len(ids)])))
             if call.op == "mlp"]
    assert len(calls) == chosen.config.num_hidden_layers
    for call in calls:
        gate, up = (call.arguments["x_Td"] @ call.arguments[name].T for name in ("w1_Fd", "w3_Fd"))
        assert gate.max() > 10 and up.max() > 10 and up.min() < -10


@pytest.mark.parametrize("name, part", [("window-off-by-one", "window and HCA edge (128)"),
                                        ("mtp-on-the-wrong-token", "MTP"),
                                        ("window-crosses-samples", "packed samples")])
def test_a_planted_fault_fails_its_part_and_is_named(name, part, signatures):
    chosen = weight_set("outliers")
    suite = short(shipped("outliers"), "text of 5", "text of 129", "MTP, text of 6", "packed samples")
    outcome = judge(faulty(chosen, name), suite, "float32")
    assert part in {case.part for case, _ in outcome.failed}
    best = likeness(signatures, outcome.failed, among=SUSPECTS)[0]
    assert best.fault == name and best.left < 0.01 and "100 % explained" in str(best)


def test_a_fault_of_chunks_fails_chunks_only():
    whole = shipped("outliers")
    suite = replace(whole, cases=tuple(case for case in whole.cases if case.kind != "whole" or len(case.tokens) < 300))
    outcome = judge(faulty(weight_set("outliers"), "overlap-lost-between-chunks"), suite, "float32")
    assert {case.part for case, _ in outcome.failed} == {"chunked prefill and decode"}


def test_noise_looks_like_no_known_fault():
    chosen, suite = weight_set("nano"), short(shipped("nano"), "text of 5")
    case, random = suite.cases[0], torch.Generator().manual_seed(0)
    noise = torch.randn(case.logprobs.shape, generator=random, dtype=torch.float64)
    assert not likeness(Signatures(chosen), [(case, Seen(case.logprobs + noise, noise == noise))], among=SUSPECTS)


def test_nan_fails_and_absent_functions_are_skipped():
    suite = short(shipped("nano"), "text of 3", "MTP, text of 6")
    outcome = judge(Functions({"logits": lambda ids: torch.full((len(ids), 4096), torch.nan)}, 4096), suite, "float32")
    assert [(row.verdict, row.note) for row in outcome.rows] == [
        ("FAIL", "it gave NaN or Inf"),
        ("skipped", "the file does not define mtp(ids) -> [T - 1, V]: row t predicts ids[t + 2]")]


@pytest.mark.parametrize("result, words", [(torch.zeros(3, 7), "shape (3, 7); [3, 4096] is wanted"),
                                           (None, "no array")])
def test_misshapen_results_fail_with_the_shape(result, words):
    suite = short(shipped("nano"), "text of 3")
    row = judge(Functions({"logits": lambda ids: result}, 4096), suite, "float32").rows[0]
    assert row.verdict == "FAIL" and words in row.note


def test_what_cannot_be_asked_is_skipped_not_passed():
    class Nothing:
        def run(self, case):
            raise Unable("no way")

    assert judge(Nothing(), shipped("nano"), "float32").rows[0].verdict == "skipped"


def test_a_wider_indexer_is_the_same_function():
    chosen = weight_set("nano")
    case = next(case for case in shipped("nano").cases if case.name == "text of 320")
    wide = widened(chosen, 128)
    assert torch.allclose(picked(run(wide.model(), "whole", case.pieces), case), case.logprobs, atol=1e-4)
    with pytest.raises(InputError, match="32 times 1, 4, 16 or 64"):
        widened(chosen, 64)


def test_a_file_is_judged_by_its_model_and_its_ops(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from anychip.checkpoint import load_model\nfrom anychip.ops import Ops\n"
                    "from anychip.conform.cases import run\n"
                    "def load(folder):\n    global model\n    model = load_model(folder, Ops())[0].eval()\n"
                    "def logits(ids):\n    return run(model, 'whole', (tuple(ids),)).numpy()\n"
                    "def mlp(x, w1, w3, w2, limit):\n    return Ops.mlp(x, w1, w3, w2, 1e9)\n")
    report = judge_file(path, ("nano",), "float32", "publisher", lambda text: None)
    assert {row.part for row in report.failed} == {"op mlp"} and report.verdict == "does not conform"
    assert "clamp-missing-shared" in report.likely["ops"][0]
    passed = [row for row in report.rows if row.verdict == "pass"]
    assert sum(not row.part.startswith("op ") for row in passed) == 12  # every whole text
    assert {row.case for row in passed if row.part == "op mlp"} == {"no clamp", "no clamp: gradient"}


def test_the_command_exits_with_1_and_json_where_something_fails(tmp_path):
    path = tmp_path / "gelu.py"
    path.write_text("from anychip.ops import Ops\ndef rms_norm(x, weight_C, eps):\n    return x\n")
    result = anychip("conform", path, "--json")
    assert result.exit_code == 1
    shown = json.loads(result.stdout)
    assert shown["verdict"] == "does not conform" and {row["part"] for row in shown["rows"]} == {"op rms_norm"}
    path.write_text("from anychip.ops import Ops\ndef rms_norm(x, weight_C, eps):\n"
                    "    return Ops.rms_norm(x, weight_C, eps)\n")
    assert anychip("conform", path).exit_code == 0


def test_bad_input_is_refused_with_the_choices(tmp_path):
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    assert "defines nothing to judge" in refusal("conform", empty)
    assert "Choices: nano, outliers" in refusal("conform", "--export", tmp_path / "x", "--weights", "outlier")
    assert "nothing was given; say one of" in refusal("conform")
    assert "there is no tolerance for 'bf16'" in refusal("conform", empty, "--dtype", "bf16")
    assert "does not answer" in refusal("conform", "--endpoint", "http://127.0.0.1:9", "--model", "m")
    words = refusal("conform", "--endpoint", "http://127.0.0.1:9", "--key-env", "NO_KEY")
    assert "no such environment variable" in words


def test_an_occupied_folder_is_not_overwritten(tmp_path):
    (tmp_path / "file").write_text("keep")
    with pytest.raises(InputError):
        export(weight_set("nano"), tmp_path, "publisher")
    assert (tmp_path / "file").read_text() == "keep"


def test_a_foreign_file_holds_no_vectors(tmp_path):
    from anychip.conform.cases import read

    (tmp_path / "x.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(BundleError, match="does not hold golden vectors"):
        read(tmp_path / "x.safetensors", "nano")
