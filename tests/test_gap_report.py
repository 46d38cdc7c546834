"""The gap report: every number has kind and unit, nothing in it can act, and odd runs print too."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from gap_report_cases import CASES, broken, comparison, emulated, equal, page_of
from rich.console import Console

from anychip.cli.gap import gap as gap_command
from anychip.errors import InputError
from anychip.gap.report import print_report, to_json, write_html
from anychip.gap.report.html import quantity
from anychip.gap.report.plots import ops_plot
from anychip.gap.report.verdict import Mark, headline, verdicts
from anychip.gap.report.words import TAGS, command, full, number, visible
from anychip.record import Kind, Quantity


def printed(case, width=100) -> str:
    stream = io.StringIO()
    print_report(case, Console(file=stream, width=width, force_terminal=False))
    return stream.getvalue()


def quantities(case):
    for rows in (case.ops, case.layers, case.model, case.training, case.speed, case.memory):
        for row in rows:
            yield from (value for value in (row.a, row.b, row.gap) if value is not None)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_line_of_the_terminal_report_is_wider_than_the_terminal(name, width):
    assert max(map(len, printed(CASES[name](), width).splitlines())) <= width


@pytest.mark.parametrize("name", CASES)
def test_terminal_shows_every_number_next_to_its_kind(name):
    case = CASES[name]()
    words = re.sub(r"\s+", " ", printed(case, 160))
    for value in quantities(case):
        shown = "unknown" if value.value is None else number(value.value)
        unit = re.escape(f" {value.unit}") if value.unit else ""
        assert shown == "unknown" and "unknown" in words or re.search(
            rf"{re.escape(shown)}({unit})? \({TAGS[value.kind]}\)", words), value


@pytest.mark.parametrize("name", CASES)
def test_page_shows_every_number_next_to_its_kind_and_interval(name):
    page = page_of(name)
    for value in quantities(CASES[name]()):
        assert str(quantity(value)) in page or str(quantity(value, value.unit)) in page, value


def test_a_number_without_its_kind_cannot_be_written():
    assert full(Quantity(0.5, "ms", Kind.SIMULATED, 0.4, 0.6)) == "0.5 [0.4, 0.6] ms (sim)"
    assert full(Quantity(None, "ms", Kind.MEASURED)) == "unknown"
    assert [number(x) for x in (None, float("nan"), 0.0, 12345.6, 2.5e-8, 0.03125)] == [
        "unknown", "NaN", "0", "12,346", "2.50e-08", "0.03125"]


@pytest.mark.parametrize("name", CASES)
def test_page_fetches_nothing_and_runs_nothing(name):
    page = page_of(name)
    assert not re.findall(r"https?:|//[a-z]|<script|<link|<img|<iframe|@import|\bsrc=|\bon[a-z]+=|javascript:", page)
    assert all(target.startswith("#") for target in re.findall(r"href=\"([^\"]*)\"", page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


@pytest.mark.parametrize("name", CASES)
def test_page_is_well_formed_with_unique_ids(name):
    reader = _Reader()
    reader.feed(page_of(name))
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids)) > 50
    assert all(target[1:] in reader.ids for target in reader.targets)


def test_page_shows_generated_text_as_text_only():
    page = page_of("departs")
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_terminal_shows_generated_text_as_text_only():
    text = printed(comparison())
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold]red[/bold]" in text
    assert visible("a\nb\x1b") == "a\u23ceb\\u001b"


def test_marked_text_begins_where_the_two_texts_part():
    page = page_of("departs")
    assert "upon a <mark>time</mark>" in page
    assert "upon a <mark>horse " in page


def test_report_is_written_whole_or_refused(tmp_path):
    write_html(comparison(), tmp_path / "gap.html")
    assert (tmp_path / "gap.html").read_text(encoding="utf-8").endswith("</html>")
    with pytest.raises(InputError, match="choose a folder that exists"):
        write_html(comparison(), tmp_path / "missing" / "gap.html")
    assert [path.name for path in tmp_path.iterdir()] == ["gap.html"]


def test_plots_keep_their_text_and_take_the_pages_colours():
    page = page_of("departs")
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 6
    assert all("<text" in plot and 'role="img"' in plot for plot in plots)
    assert "bf16 explains 0.01172" in page
    colours = set(re.findall(r"#[0-9a-f]{6}\b", "".join(plots)))
    assert colours == set()


def test_bar_beyond_the_format_is_hatched_and_one_within_is_not():
    departs = comparison()
    within = replace(departs, ops=departs.ops[1:], departs_op=None)
    assert [ops_plot(case, "bf16").count("<pattern") for case in (departs, within)] == [1, 0]


@pytest.mark.parametrize("name", CASES)
def test_json_is_strict_and_holds_every_quantity(name):
    case = CASES[name]()
    document = json.loads(json.dumps(to_json(case), allow_nan=False))
    assert document["schema"] == "anychip-gap-report/2"
    found = [q for table in ("ops", "layers", "model", "training", "speed", "memory") for row in document[table]
             for q in (row["a"], row["b"], row["gap"]) if q]
    assert [(q["unit"], q["kind"]) for q in found] == [(q.unit, q.kind.value) for q in quantities(case)]
    assert all(set(q) == {"value", "unit", "kind", "low", "high"} for q in found)


def test_json_tells_nan_from_unknown():
    document = to_json(broken())
    assert document["model"][0]["gap"]["value"] == "NaN"
    assert document["speed"][0]["a"]["value"] is None


def test_verdict_names_the_first_op_that_departs():
    marks = {line.about: line.mark for line in verdicts(comparison())}
    assert headline(comparison()) == "Faulty: op experts: its result is 0.5 from the float64 golden"
    assert headline(replace(comparison(), places=[])) == "First op that departs: experts in layers.1.ffn"
    assert (marks["ops"], marks["layers"], marks["loss"]) == (Mark.GAP, Mark.GAP, Mark.NOISE)
    assert headline(equal()) == "No op and no layer departs beyond what fp32 explains"


def test_verdict_judges_a_loss_by_whether_its_interval_holds_zero():
    case = comparison()
    worse = replace(case, model=[*case.model[:2], replace(case.model[2], gap=emulated(0.02, "nats/token", 0.01, 0.03))])
    assert [line.mark for c in (case, worse, broken()) for line in verdicts(c) if line.about == "loss"] == [
        Mark.NOISE, Mark.GAP, Mark.GAP]


def test_verdict_turns_times_into_speed():
    said = [line.text() for line in verdicts(comparison()) if line.about == "speed"]
    assert said[0].endswith("B is 2.5 x (sim) as fast")
    assert said[1].endswith("B is 2 x (sim) as fast")


def test_command_that_reproduces_is_one_that_the_command_line_has():
    case = comparison()
    assert command(case) == "anychip gap --model nano --chips cpu,virtual:x1 --seed 7"
    other = replace(case, about_a={**case.about_a, "text": "my text.txt"}, levels=["op"])
    assert command(other) == "anychip gap --model nano --chips cpu,virtual:x1 --text 'my text.txt' --seed 7 --level op"
    assert {"model", "chips", "seed"} <= set(gap_command.__annotations__)


class _Reader(HTMLParser):
    """Collects ids and internal links, and the tags that are still open."""

    VOID = frozenset({"meta", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.targets = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.targets += [value for name, value in attrs if name == "href"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize(("kl", "mark"), [(0.0, Mark.SAME), (5e-7, Mark.NOISE), (0.007, Mark.NOISE), (0.02, Mark.GAP)])
def test_next_token_is_judged_against_the_chips_noise_and_their_formats(kl: float, mark: Mark) -> None:
    case = comparison()
    case = replace(case, model=[replace(case.model[0], gap=emulated(kl, "nats/token", kl, kl)), *case.model[1:]])
    assert [line.mark for line in verdicts(case) if line.about == "next token"] == [mark]
