"""`anychip conform` judges single layers, and the gradients of a user's ops."""

import pytest
import torch
from test_cli import anychip

from anychip.conform.layers import KINDS, judge_layers, layer_input, run_layer, shipped_layers
from anychip.conform.user_ops import judge_ops
from anychip.conform.weights import SETS, weight_set
from anychip.faults import find_fault
from anychip.ops import Ops


def rows(name: str, fault: str | None = None):
    chosen = weight_set(name)
    model = chosen.model(Ops() if fault is None else find_fault(fault).ops(Ops()))
    if fault is not None:
        find_fault(fault).prepare(model)
    return judge_layers(lambda index, streams, ids: run_layer(model, index, streams, ids), chosen, "float32")


@pytest.mark.parametrize("name", SETS)
def test_the_reference_s_layers_pass_and_every_kind_is_among_them(name):
    found = rows(name)
    assert [row.verdict for row in found] == ["pass"] * 3
    assert [row.part for row in found] == [f"one layer: {kind}" for kind in KINDS.values()]


@pytest.mark.parametrize("fault, kinds", [("overlap-missing", {4}), ("entry-visible-early", {4, 128}),
                                          ("window-off-by-one", {0, 4, 128}), ("indexer-relu-missing", {4}),
                                          ("hash-table-shifted", {0})])
def test_a_fault_fails_the_kinds_of_layers_that_have_the_part(fault, kinds):
    failed = {row.part for row in rows("nano", fault) if row.verdict == "FAIL"}
    assert failed == {f"one layer: {KINDS[kind]}" for kind in kinds}


def test_inputs_are_the_same_on_every_machine_and_reach_past_the_indexer_s_limit():
    streams = layer_input(torch.eye(3, 4), [2, 0], 2) * 2**15
    assert streams.flatten().tolist()[:6] == [-1012.0, 178.0, 15705.0, 511.0, -346.0, 844.0]
    assert torch.equal(streams, streams.round())
    chosen = weight_set("nano")
    assert all(len(case.ids) // 4 > chosen.config.index_topk for case in shipped_layers(chosen))


@pytest.mark.parametrize("result, words", [(lambda *given: torch.zeros(2, 3), "shape (2, 3)"),
                                           (lambda *given: 1 / 0, "ZeroDivisionError")])
def test_what_is_no_layer_s_result_fails_with_the_reason(result, words):
    found = judge_layers(result, weight_set("nano"), "float32")
    assert all(row.verdict == "FAIL" and words in row.note for row in found)


def test_a_wrong_gradient_of_a_user_s_op_fails_and_a_missing_one_is_skipped(tmp_path):
    path = tmp_path / "ops.py"
    path.write_text("import torch\nfrom anychip.ops import Ops\ndef rms_norm(x, weight_C, eps):\n"
                    "    root = torch.rsqrt(x.detach().square().mean(-1, keepdim=True) + eps)\n"
                    "    return x * root if weight_C is None else weight_C * x * root\n"
                    "def embed(ids, weight):\n    return Ops.embed(ids, weight).detach()\n")
    found, _ = judge_ops(path, ("rms_norm", "embed"), "float32")
    verdicts = {(row.part, "gradient" in row.case): row.verdict for row in found}
    assert verdicts == {("op rms_norm", False): "pass", ("op rms_norm", True): "FAIL", ("op embed", False): "pass",
                        ("op embed", True): "skipped"}


def test_a_file_with_a_layer_alone_is_judged(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def layer(index, streams, ids):\n    return streams\n")
    result = anychip("conform", path, "--weights", "nano")
    assert result.exit_code == 1 and "one layer: HCA" in result.stdout
