"""Tasks of lm-evaluation-harness through our systems: its prompts, filters and metrics; equal to its own run."""

from __future__ import annotations

import json

import pytest
from eval_server import StandIn

from anychip.errors import InputError
from anychip.eval.replies import Replies
from anychip.eval.run import run_task
from anychip.eval.systems import Ask, open_system
from anychip.eval.tasks import find_task

pytest.importorskip("lm_eval")

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}, train: {data}}}}}
output_type: {kind}
test_split: test
fewshot_split: train
num_fewshot: 2
fewshot_config: {{sampler: first_n}}
doc_to_text: "Q: {{{{a}}}} + {{{{b}}}}?\\nA:"
doc_to_target: "{{{{a + b}}}}"
generation_kwargs: {{until: {until}, max_gen_toks: 16}}
metric_list: [{{metric: {metric}}}]
filter_list:
  - name: strict
    filter: [{{function: regex, regex_pattern: "= (\\\\d+)"}}, {{function: take_first}}]
  - name: last
    filter: [{{function: regex, regex_pattern: "\\\\d+", group_select: -1}}, {{function: take_first}}]
"""
REPLIES = [" = 4 Q: 9", "5", "= 77", "none"]  # of 4, 5, 6 and 7: right; right but not strict; wrong; nothing
SUMS = [{"a": 2, "b": 2 + i} for i in range(len(REPLIES))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, SUMS)))
    (tmp_path / "tasks").mkdir()
    return tmp_path


def write(folder, kind="generate_until", metric="exact_match", until='["Q:"]'):
    text = TASK.format(data=folder / "data.jsonl", kind=kind, metric=metric, until=until)
    (folder / "tasks" / "sums.yaml").write_text(text)
    return folder / "tasks"


def test_prompts_filters_and_metrics_are_the_harnesss(folder):
    strict, last = (find_task(f"lm:sums{name}", write(folder)) for name in ("", ":last"))
    assert [task.name for task in (strict, last)] == ["lm:sums:strict", "lm:sums:last"]
    prompts = [question.prompt for question in strict.questions]
    assert prompts[2] == "Q: 2 + 2?\nA: 4\n\nQ: 2 + 3?\nA: 5\n\nQ: 2 + 4?\nA:"
    said = dict(zip(prompts, REPLIES, strict=True))
    for task, right, read in ((strict, [1, 0, 0, 0], ["4", None, "77", None]),
                              (last, [1, 1, 0, 0], ["4", "5", "77", None])):
        with StandIn(said.get) as server:
            system = open_system(f"openai:m@{server.url}", Ask(), lambda name: "key")
            run = run_task(system, task, Replies(folder / f"{task.name}.sqlite"))
        assert (run.right, [each.answer for each in run.answers]) == (list(map(bool, right)), read)
    theirs = harness_scores(said, folder / "tasks")
    assert (theirs["exact_match,strict"], theirs["exact_match,last"]) == (0.25, 0.5)


def harness_scores(said, tasks):
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Same(LM):
        """Gives the same replies, cut at the texts that end an answer, as the harness asks of every model."""

        def generate_until(self, requests):
            return [said[request.args[0]].split(request.args[1]["until"][0])[0] for request in requests]

        loglikelihood = loglikelihood_rolling = None

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return simple_evaluate(Same(), tasks=["sums"], task_manager=manager, bootstrap_iters=0)["results"]["sums"]


def test_one_end_may_stand_alone(folder):
    task = find_task("lm:sums", write(folder, until='"Q:"'))
    assert [task.judge(task.questions[0], reply) for reply in ("= 4 Q: = 9", "Q: = 4")] == [("4", True), (None, False)]


@pytest.mark.parametrize(("name", "change", "message"), [
    ("lm:summs", {}, "did you mean.*sums"),
    ("lm:sums:lax", {}, "choose of strict, last"),
    ("lm:sums", {"kind": "loglikelihood"}, "likelihood"),
    ("lm:sums", {"metric": "bleu"}, "neither right nor wrong"),
])
def test_what_cannot_be_asked_is_refused(folder, name, change, message):
    with pytest.raises(InputError, match=f"(?is){message}"):
        find_task(name, write(folder, **change))
