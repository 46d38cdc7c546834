"""`anychip kernels` and `anychip kernels check`: answers, exit codes, reports, crashes."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anychip.ascend import pool, toolchain
from anychip.ascend.check import Settings
from anychip.cli import build

FILE = Path(__file__).with_name("kernel_file.py")
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("ascendnpuir") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs pip install 'anychip[ascend]', and Triton not in interpreter mode")


def check(*arguments):
    return CliRunner().invoke(build(), ["kernels", "check", *map(str, arguments)])


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    result = check(FILE, "--jobs", 0, "--html", folder / "report.html", "--trace", folder / "traces", "--json")
    assert result.exit_code == 1, result.output
    return json.loads(result.stdout), folder


def result_of(shown, kernel, example="rows"):
    (found,) = [r for r in shown[0]["results"] if (r["kernel"], r["example"]) == (kernel, example)]
    return found


@needs_compiler
def test_a_good_kernel_passes_with_memory_time_and_precision(shown):
    found = result_of(shown, "softmax")
    assert found["status"] == "pass" and found["problems"] == [] and found["core_type"] == "AIV"
    assert found["outputs"]["y"]["passed"] and found["native"]["y"]["passed"]
    assert found["time"]["kind"] == "simulated" and 1e-6 < found["time"]["time_s"] < 1e-3
    assert 0 < found["memory"]["ub"]["used_bytes"] < found["memory"]["ub"]["limit_bytes"] == 192 * 1024


@needs_compiler
def test_a_kernel_without_a_reference_is_still_executed_and_timed(shown):
    found = result_of(shown, "without_reference")
    assert found["status"] == "pass" and found["outputs"] == {} and found["native"]["y"]["exact"]
    assert not found["has_reference"] and found["time"]["time_s"] > 0


@needs_compiler
def test_each_fault_has_an_answer_of_its_own(shown):
    huge = result_of(shown, "softmax", "one_long_row")
    assert (huge["status"], huge["error_kind"]) == ("error", "memory") and "196,608 available" in huge["error"]
    misspelt = result_of(shown, "misspelt")
    assert misspelt["error_kind"] == "source" and "no attribute 'lode'" in misspelt["error"]
    lines = FILE.read_text().splitlines()
    assert "tl.lode" in lines[int(misspelt["error_place"].rsplit(":", 1)[1]) - 1]
    gather = result_of(shown, "gather", "with_gaps")
    (finding,) = gather["findings"]
    assert gather["status"] == "fail" and finding["kind"] == "outside_read" and "argument x" in finding["seen"]
    assert "value = tl.load(x + chosen" in lines[int(finding["place"]["line"].split(":")[1]) - 1]
    wrong = result_of(shown, "doubled")
    assert "wrong result: output 'y' largest relative error" in wrong["problems"][0] and wrong["native"]["y"]["passed"]
    assert shown[0]["healthy"] is False and (shown[0]["passed"], shown[0]["checked"]) == (2, 6)


@needs_compiler
def test_the_page_and_the_traces_hold_the_results(shown):
    page = (shown[1] / "report.html").read_text()
    assert "2 of 6 checks pass" in page and "outside_read" in page and "<script" not in page and "http" not in page
    trace = json.loads((shown[1] / "traces" / "softmax-rows-ascend910b.json").read_text())
    names = {event["name"] for event in trace["traceEvents"]}
    assert "vexp" in names and any(n.startswith("program") for n in names)


@needs_compiler
def test_processes_give_what_one_process_gives(shown):
    tasks = [pool.Task(FILE, "softmax", "rows", chip, Settings()) for chip in ("ascend910b", "ascend910b3")]
    found = pool.run_tasks(tasks, 2, 60.0, lambda task, checked: None)
    assert [c.status for c in found] == ["pass", "pass"] and [c.target for c in found] == ["ascend910b", "ascend910b3"]
    assert found[0].outputs["y"].mare == result_of(shown, "softmax")["outputs"]["y"]["mare"]


@needs_compiler
def test_a_kernel_that_ends_its_process_is_an_error_and_the_rest_go_on(tmp_path):
    file = tmp_path / "deadly.py"
    text = FILE.read_text().replace("def gathered(a):", "def gathered(a):\n    import os\n    os._exit(3)")
    file.write_text(text)
    result = check(file, "--kernel", "gather,without_reference", "--jobs", 2, "--json")
    found = {r["kernel"]: r for r in json.loads(result.stdout)["results"]}
    assert result.exit_code == 1 and found["without_reference"]["status"] == "pass"
    assert found["gather"]["error_kind"] == "crash" and "ended its process" in found["gather"]["error"]


@needs_compiler
def test_a_kernel_that_never_ends_is_stopped_and_said(tmp_path):
    text = FILE.read_text().replace("def gathered(a):", "def gathered(a):\n    while True:\n        pass")
    (tmp_path / "slow.py").write_text(text)
    result = check(tmp_path / "slow.py", "--kernel", "gather", "--jobs", 1, "--limit", 4)
    assert result.exit_code == 1 and "timeout: kernel 'gather' on ascend910b did not end within 4 s" in result.stdout


@needs_compiler
def test_a_file_that_does_not_parse_is_a_result_beside_the_others(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    result = check(broken, FILE, "--kernel", "without_reference", "--jobs", 0)
    assert result.exit_code == 1 and "broken.py, line 1: invalid syntax" in result.stdout
    assert "1 of 2 checks pass" in result.stdout


@needs_compiler
def test_everything_that_passes_exits_with_0():
    result = check(FILE, "--kernel", "softmax", "--jobs", 0, "--target", "Ascend910B4", "--seed", 2)
    assert result.exit_code == 1  # its second example is too big
    assert check(FILE, "--kernel", "without_reference", "--jobs", 0).exit_code == 0


@needs_compiler
@pytest.mark.parametrize(("arguments", "words"), [
    (("--target", "ascend95"), "Did you mean 'ascend950'?"), (("--target", ","), "names no chip"),
    (("--kernel", "softmix"), "Did you mean 'softmax'?"), (("--level", "L9"), "none of L0, L1, L2"),
    (("--jobs", "-1"), "at least 0"), (("--limit", "0"), "more than 0 seconds")])
def test_a_request_that_cannot_be_met_exits_with_2(arguments, words):
    result = check(FILE, *arguments)
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.stderr


@needs_compiler
def test_a_file_without_examples_is_refused(tmp_path):
    (tmp_path / "none.py").write_text("x = 1\n")
    result = check(tmp_path / "none.py")
    assert result.exit_code == 2 and "@example(inputs) above @triton.jit" in result.stderr
    assert "there is no file" in check(tmp_path / "missing.py").stderr


@needs_compiler
def test_the_list_says_what_the_last_check_of_the_present_kernel_said(tmp_path, monkeypatch):
    monkeypatch.setattr("anychip.ascend.cache.cache_folder", lambda kind="": tmp_path / kind)

    def state():
        rows = json.loads(CliRunner().invoke(build(), ["kernels", "--json"]).stdout)
        return {row["kernel"]: row["chips"]["ascend910b"] for row in rows}

    assert set(state().values()) == {"not checked"} and len(state()) > 30
    result = CliRunner().invoke(build(), ["kernels", "check", "--kernel", "rows_take", "--jobs", "0"])
    assert result.exit_code == 0, result.output
    assert {kernel for kernel, word in state().items() if word == "pass"} == {"rows_take"}


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec",
                        lambda name: None if name in ("triton", "ascendnpuir") else real(name))
    toolchain.find_toolchain.cache_clear()
    for arguments in (["kernels"], ["kernels", "check"], ["kernels", "check", str(FILE)]):
        result = CliRunner().invoke(build(), arguments)
        assert result.exit_code == 2 and "pip install 'anychip[ascend]'" in result.stderr
    toolchain.find_toolchain.cache_clear()
