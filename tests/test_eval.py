"""`anychip eval`: tasks, what is read in a reply, relative scores, and endpoints that limit, fail and come back."""

import json
import math

import numpy as np
import pytest
from eval_server import StandIn
from typer.testing import CliRunner

from anychip.cli import build
from anychip.errors import InputError
from anychip.eval.answers import judge, read_answer
from anychip.eval.replies import Replies
from anychip.eval.run import Incomplete, run_task
from anychip.eval.score import compare, ratio, share
from anychip.eval.systems import Ask, Rejected, open_system
from anychip.eval.tasks import OWN, Question, find_task

pytest.importorskip("openai")
pytest.importorskip("anthropic")
CHOICE = Question("q", "Which?", "B", ("one", "two", "three"))


def answers(task, wrong=()):
    """Prompt -> right answer, or a wrong one for the questions at these places."""
    return {q.prompt: ("?" if i in wrong else q.answer) for i, q in enumerate(task.questions)}


def ask(server, task, tmp_path, provider="openai"):
    system = open_system(f"{provider}:m@{server.url}", Ask(), lambda name: "key", parallel=4)
    try:
        return run_task(system, task, Replies(tmp_path / "replies.sqlite"))
    finally:
        system.close()


@pytest.mark.parametrize("name", OWN)
def test_own_tasks_have_200_different_questions_that_never_change(name):
    task = find_task(name)
    assert len({q.prompt for q in task.questions}) == len({q.id for q in task.questions}) == 200
    assert task.digest == {"arithmetic": "bb045c3483d61957", "books": "a4717743e2b973b3",
                           "strings": "6ea7030ffec235c3"}[name]


@pytest.mark.parametrize(("reply", "found"), [
    ("B", "B"), ("The answer is B.", "B"), ("**B**. two", "B"), ("A is wrong, C too. Answer: B", "B"), ("(B) two", "B"),
    ("A or B", None), ("Between A and C I pick\nB", "B"), ("two", None), ("", None), ("A cat", "A")])
def test_a_letter_is_read_where_it_is_clear(reply, found):
    assert read_answer(reply, CHOICE) == found


@pytest.mark.parametrize(("reply", "right"), [("1,234", True), ("12 + 1222 = 1234.", True), ("1234 or 5", False),
                                              ("-1234", False), ("none", False)])
def test_the_last_number_counts(reply, right):
    assert judge(Question("q", "What is 12 + 1222?", "1234"), reply)[1] is right


def test_words_are_read_without_marks_and_case():
    question = Question("q", "?", "esroh")
    assert judge(question, "It is: 'Esroh'.") == ("esroh", True) and judge(question, "") == (None, False)


def test_a_task_file_is_read_or_every_fault_named(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "?", "answer": "two", "choices": ["one", "two"]}\n{"question": "2+2", "answer": 4}\n')
    assert [q.answer for q in find_task(str(path)).questions] == ["B", "4"]
    path.write_text('nonsense\n{"question": "?"}\n{"question": "?", "answer": "x", "choices": ["y"]}\n')
    with pytest.raises(InputError, match=r"line 1 is not JSON.*line 2 needs.*line 3: answer 'x' is none"):
        find_task(str(path))
    with pytest.raises(InputError, match="choose of arithmetic, books, strings"):
        find_task("arithmetics")


def test_the_ratios_interval_is_bonett_and_prices():
    """Hand-computed: 43 right on both of 80 that either got right, 8 on a alone, 29 on b alone."""
    found = ratio(43, 8, 29)
    n, a, b, z = 80, 51, 72, 1.959963984540054
    k = math.sqrt(39 / (52 * 73)) / (math.sqrt((1 - 52 / 82) / 52) + math.sqrt((1 - 73 / 82) / 73)) * z

    def wilson(x):
        return [(2 * x + k * k + s * k * math.sqrt(k * k + 4 * x * (1 - x / n))) / (2 * (n + k * k)) for s in (-1, 1)]

    assert found.value == b / a
    assert (found.low, found.high) == pytest.approx((wilson(b)[0] / wilson(a)[1], wilson(b)[1] / wilson(a)[0]))


@pytest.mark.parametrize(("cells", "n"), [((0.6, 0.1, 0.05), 200), ((0.2, 0.2, 0.1), 60), ((0.9, 0.02, 0.04), 200)])
def test_the_ratios_interval_covers(cells, n):
    """Cells: right on both, on a alone, on b alone. Half a point is allowed for 4,000 trials' own noise."""
    random = np.random.default_rng(n)
    true = (cells[0] + cells[2]) / (cells[0] + cells[1])
    draws = random.multinomial(n, [*cells, 1 - sum(cells)], size=4000)
    hits = [(found := ratio(*map(int, draw[:3]))).low <= true <= found.high for draw in draws]
    assert 0.94 <= np.mean(hits) <= 0.985


def test_scores_refuse_what_has_no_ratio():
    with pytest.raises(InputError, match="not a single question|single question"):
        ratio(0, 0, 0)
    with pytest.raises(InputError, match="paired"):
        compare([True], [])
    assert compare([False, False], [True, False]).ratio is None
    assert share(0, 10).low == 0


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_rate_limits_are_waited_out(provider, tmp_path):
    task = find_task("arithmetic").first(12)
    with StandIn(answers(task, wrong={3}).get, limited=7) as server:
        run = ask(server, task, tmp_path, provider)
    assert run.right == [i != 3 for i in range(12)] and run.tokens() == (120, 24)
    assert len(server.asked) == 12 and server.seen == 19


def test_a_run_that_fails_in_the_middle_goes_on_and_pays_for_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("anychip.eval.systems.RETRIES", 1)
    task = find_task("strings").first(20)
    with StandIn(answers(task).get, broken=lambda n: 500 if n > 9 else 0) as server, pytest.raises(
            Incomplete, match="9 of 20 questions"):
        ask(server, task, tmp_path)
    first = list(server.asked)
    with StandIn(answers(task).get) as again:
        system = open_system(f"openai:m@{server.url}", Ask(), lambda name: "key", parallel=4)
        system._client = system._client.with_options(base_url=again.url)
        run = run_task(system, task, Replies(tmp_path / "replies.sqlite"))
    assert all(run.right) and sorted(first + again.asked) == sorted(q.prompt for q in task.questions)
    assert sum(answer.kept for answer in run.answers) == 9


def test_a_wrong_key_ends_the_run_at_once(tmp_path):
    """Four requests are under way at a time, and whichever thread is refused first starts no other."""
    task = find_task("strings")
    with StandIn(answers(task).get, broken=lambda n: 401) as server, pytest.raises(Rejected, match="401"):
        ask(server, task, tmp_path)
    assert server.seen <= 4


def test_a_relative_score_between_two_servers_equals_the_hand_computed(tmp_path):
    task = find_task("books")
    wrong_a, wrong_b = set(range(0, 200, 5)), set(range(0, 200, 4))
    with StandIn(answers(task, wrong_a).get) as a, StandIn(answers(task, wrong_b).get) as b:
        result = CliRunner().invoke(build(), ["eval", f"openai:a@{a.url}", f"anthropic:b@{b.url}", "--task", "books",
                                              "--out", str(tmp_path), "--json", "--price", f"openai:a@{a.url}=1/10"],
                                    env={"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k"})
    reference, row = json.loads(result.stdout)
    both = 200 - len(wrong_a | wrong_b)
    assert (reference["right"], row["right"], row["only_reference"], row["only_this"]) == (160, 150, 40, 30)
    assert row["relative"] == pytest.approx([150 / 160, *(lambda r: (r.low, r.high))(ratio(both, 40, 30))])
    assert reference["cost"]["usd"] == pytest.approx((2000 * 1 + 400 * 10) / 1e6) and row["cost"]["usd"] is None


def test_a_model_on_a_chip_answers_through_the_engine(tmp_path):
    result = CliRunner().invoke(build(), ["eval", "nano@cpu", "--task", "arithmetic", "--limit", "3", "--max-tokens",
                                          "8", "--out", str(tmp_path), "--json"])
    row = json.loads(result.stdout)[0]
    assert row["questions"] == 3 and row["cost"]["output_tokens"] <= 24 and row["cost"]["usd"] is None


@pytest.mark.parametrize(("arguments", "words"), [
    (["nano"], "names no system"), (["openai:@http://x"], "names no model"), (["openai:gpt"], "wants a key"),
    (["nano@cpu", "nano@cpu"], "each system can be given once"), (["nano@cpu", "--price", "x=1/2"], "is not asked"),
    (["nano@cpu", "--price", "nano@cpu=1"], "IN/OUT")])
def test_bad_input_is_refused_in_one_line(arguments, words, tmp_path):
    result = CliRunner().invoke(build(), ["eval", *arguments, "--out", str(tmp_path)],
                                env={"OPENAI_API_KEY": ""})
    assert result.exit_code == 2 and words in result.stderr
