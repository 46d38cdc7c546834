"""The model, the trainer and the report on a strict stand-in for an Ascend NPU, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SERVE = """
import json, sys, traceback, torch, standin
device = standin.install()
from models import nano, random_ids, vivid_model
from train_cases import small
from anychip.chips import open_chip
chip = open_chip("npu")
given = dict(globals())
for line in sys.stdin:
    standin.log.__init__()
    names = dict(given)
    try:
        exec(json.loads(line), names)
        print(json.dumps({**vars(standin.log), **names.get("found", {})}), flush=True)
    except Exception:
        print(json.dumps({"failed": traceback.format_exc()}), flush=True)
"""


@pytest.fixture(scope="module")
def on_standin():
    """Runs code in the stand-in's process; returns what the stand-in saw of it and what the code left in `found`."""
    env = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", SERVE], env=env, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        def run(code):
            process.stdin.write(json.dumps(code) + "\n")
            process.stdin.flush()
            seen = json.loads(process.stdout.readline())
            assert "failed" not in seen, seen["failed"]
            return seen
        yield run
        process.stdin.close()


STATEMENTS = {
    "x.cuda()": "Tensor.cuda", "torch.nn.Linear(2, 2).cuda()": "Module.cuda", "x.to('cuda:0')": "Tensor.to",
    "torch.zeros(2, device='cuda')": "torch.zeros", "torch.cuda.synchronize()": "torch.cuda.synchronize",
    "x.double()": "float64", "torch.zeros(2, dtype=torch.float64, device='npu')": "float64",
    "x.to(torch.float8_e4m3fn)": "float8_e4m3fn", "torch.frexp(x)": "aten::frexp",
    "torch.linalg.eigh(x @ x.t())": "_linalg_eigh", "x.sum().item()": "item", "bool((x > 0).any())": "bool",
    "x.tolist()": "tolist", "x.nonzero()": "nonzero", "x[x > 0]": "index.Tensor with a mask",
    "x[torch.tensor([1, 2])] = x[:2]": "index on the host",
    "torch.ops.npu.npu_rms_norm(x, torch.ones(5, device='npu'))": "npu_rms_norm",
}
PLANTED = {"x_Td.cuda()": "Tensor.cuda", "x_Td.double()": "float64", "int(x_Td.argmax())": "item",
           "x_Td.cpu()": "middle of a pass"}


@pytest.fixture(scope="module")
def refused(on_standin):
    """What the stand-in says to each statement about `x`, a matrix on the device, and to each plant in an op."""
    return on_standin(f"""
from anychip.model import Layout
from anychip.ops import Ops
found, ids = {{}}, random_ids(20).to(chip.device)
def said(run):
    try:
        run()
    except standin.Refused as error:
        return str(error)
for statement in {list(STATEMENTS)}:
    x = torch.randn(4, 6).to(chip.device)
    found[statement] = said(lambda: exec(statement, {{"torch": torch, "x": x}}))
class Planted(type(chip.ops())):
    def route(self, x_Td, *rest, **named):
        exec(self.plant)
        return Ops.route(x_Td, *rest, **named)
for plant in {list(PLANTED)}:
    ops = Planted()
    ops.plant = plant
    model = vivid_model(nano(), ops).to(chip.device)
    found[plant] = said(lambda: model(ids, Layout.whole([20])))
model = vivid_model(nano(), Ops()).to(chip.device)
found["definitions"] = said(lambda: model(ids, Layout.whole([20])))
""")


def test_training_steps_are_the_references_and_read_back_once_each(on_standin):
    seen = on_standin("""
from anychip.text.batches import TokenBatches
from anychip.train import Trainer, TrainSettings
def losses(chip):
    settings = TrainSettings(steps=3, batch=2, length=24, seed=0, learning_rate=3e-3, warmup_steps=1)
    trainer = Trainer(vivid_model(small(), chip.ops()), chip, TokenBatches(random_ids(600), 2, 24, 0), settings)
    return [trainer.step().loss for _ in range(3)]
found = {"npu": losses(chip), "reference": losses(open_chip("cpu:reference"))}
""")
    assert seen["refusals"] == []
    assert seen["npu"] == pytest.approx(seen["reference"], rel=1e-4) and len(set(seen["npu"])) == 3
    assert list(seen["copies"].values()) == [3]
    fused = {"npu_rms_norm", "npu_rotary_mul", "npu_grouped_matmul"}
    assert fused < set(seen["operators"]) and "npu_clipped_swiglu" not in seen["operators"]  # it has no derivative


def test_decoding_is_the_references_and_reads_back_one_value_a_token(on_standin):
    seen = on_standin("""
from anychip.serve.generate import generate
from anychip.serve.request import Sampling
def text(chip):
    model = vivid_model(nano(), chip.ops()).to(chip.device)
    return list(generate(model, chip, random_ids(300).tolist(), 4, Sampling(temperature=0.0)))
found = {"npu": text(chip), "reference": text(open_chip("cpu:reference"))}
""")
    assert seen["refusals"] == [] and seen["npu"] == seen["reference"]
    assert list(seen["copies"].values()) == [4] and "npu_clipped_swiglu" in seen["operators"]


def test_several_sequences_decode_without_a_hidden_copy(on_standin):
    seen = on_standin("""
from anychip.model import Layout, State
def last(chip):
    model, state = vivid_model(nano(), chip.ops()).to(chip.device), State(
        nano(), 200, num_sequences=2, device=chip.device)
    with torch.no_grad():
        model(random_ids(150).to(chip.device), Layout((0, 0), (100, 50)), state)
        return model(random_ids(2, 1).to(chip.device), Layout((100, 50), (1, 1)), state).hidden_Td.cpu()
a, b = last(chip), last(open_chip("cpu:reference"))
found = {"error": float((a - b).norm() / b.norm())}
""")
    assert seen["refusals"] == [] and seen["error"] < 1e-5


def test_a_gap_report_is_recorded_on_it_without_a_refusal(on_standin):
    """Every section, on the small model; which published model's times are simulated says nothing of the device."""
    seen = on_standin("""
from dataclasses import replace
from anychip.gap.card import QUICK
from anychip.gap.compare import compare
from anychip.gap.proof import Reference
from anychip.gap.record import PUBLISHED, record
from anychip.gap.subject import Subject
from anychip.ops import Ops
from anychip.text.tokenizer import open_tokenizer
PUBLISHED["v4"] = "nano"
least = replace(QUICK, text_tokens=16, text_length=8, new_tokens=2, train_seeds=1, train_length=8, questions=2)
weights = {name: value.detach() for name, value in vivid_model(small(), Ops()).state_dict().items()}
reference = Reference(Subject("small", small(), weights, open_tokenizer("anychip-4096"), random_ids(600), ("It was",),
                              least))
gap = compare(*(record(reference, c) for c in (open_chip("cpu:reference"), chip)))
found = {"device": gap.about_b["description"], "places": [place.text for place in gap.places], "levels": gap.levels,
         "measured": [row.name for row in gap.speed if row.b and row.b.kind == "measured"]}
""")
    assert seen["refusals"] == [] and seen["places"] == [] and "Ascend910B2" in seen["device"]
    assert len(seen["levels"]) == 6 and "small: decode step" in seen["measured"]


def test_a_cards_sections_run_on_it(on_standin, tmp_path):
    seen = on_standin(f"""
from pathlib import Path
from anychip.gap.card import run_section
for section in ("machine", "gradients"):
    run_section(section, "npu", Path({str(tmp_path)!r}) / section, quick=True)
""")
    errors = json.loads((tmp_path / "gradients.json").read_text())
    assert seen["refusals"] == [] and len(errors) > 100 and max(errors.values()) < 1e-2
    machine = json.loads((tmp_path / "machine.json").read_text())
    assert machine["ops"]["rms_norm"] == "npu_rms_norm" and machine["versions"]["torch_npu"] == "2.13.0"


@pytest.mark.parametrize("statement", STATEMENTS)
def test_what_an_npu_lacks_is_refused_by_name_and_place(refused, statement):
    assert STATEMENTS[statement] in refused[statement] and "<string>:1" in refused[statement]


@pytest.mark.parametrize("plant", PLANTED)
def test_a_fault_planted_into_an_op_is_refused_by_name(refused, plant):
    assert PLANTED[plant] in refused[plant]


def test_the_definition_of_the_experts_waits_for_the_device_and_is_refused(refused):
    assert "nonzero" in refused["definitions"] and "ops/experts.py" in refused["definitions"]


def test_every_refusal_is_logged(refused):
    assert len(refused["refusals"]) == len(STATEMENTS) + len(PLANTED) + 1
