"""Tasks of EleutherAI's lm-evaluation-harness: its questions, prompts, filters and metrics; our systems and statistics.

Only tasks that have an answer generated and score it right or wrong: what chat endpoints can do, and what paired
shares can be formed of.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from ..errors import InputError, NotSupported, nearest
from .tasks import HARNESS, Question, Task


def harness_task(name: str, folder: Path | None = None) -> Task:
    """Return the task `NAME` or `NAME:FILTER` (default: its first filter) of the harness's own, or of `folder`'s files.

    Its data set is loaded by the harness, which downloads what is not local. Raises NotSupported without the harness,
    InputError for an unknown name or filter, a task that is not generated or not right-or-wrong, or data that cannot
    be loaded.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise NotSupported("tasks of lm-evaluation-harness need it: pip install 'anychip[harness]'") from error
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder} is no folder of task files")
    name, _, wanted = name.partition(":")
    manager = TaskManager(include_path=None if folder is None else str(folder), include_defaults=folder is None)
    if name not in manager.all_subtasks:
        known = manager.all_groups + manager.all_tags
        what = ("is a group: name one of its tasks (`lm_eval ls tasks` lists them)" if name in known
                else f"is no task of {folder or 'lm-evaluation-harness'}")
        raise InputError(f"{HARNESS}{name} {what}" + nearest(name, manager.all_subtasks))
    try:
        task = manager.load(name)["tasks"][name]
    except Exception as error:  # whatever the data's loader raises
        raise InputError(f"the data of {HARNESS}{name} cannot be loaded: {type(error).__name__}: {error}") from error
    return _Harness(task, name, wanted).task()


class _Harness:
    """One of the harness's tasks as ours."""

    def __init__(self, task: Any, name: str, wanted: str) -> None:
        self._task, self._name = task, HARNESS + name
        if task.OUTPUT_TYPE != "generate_until":
            raise InputError(f"{self._name} scores given answers by their likelihood ({task.OUTPUT_TYPE}), which chat "
                             "endpoints do not tell; choose a task that has answers generated (often NAME_generative, "
                             "NAME_gen or NAME_cot)")
        if task.config.repeats > 1:
            raise InputError(f"{self._name} asks every question {task.config.repeats} times; anychip asks once")
        filters = {each.name: each for each in task._filters}
        if wanted and wanted not in filters:
            raise InputError(f"{self._name} has no filter {wanted!r}: choose of {', '.join(filters)}")
        self._filter = filters[wanted] if wanted else next(iter(filters.values()))
        until = task.config.generation_kwargs.get("until") or []
        self._until = [until] if isinstance(until, str) else [end for end in until if end]
        task.build_all_requests()
        self._instances = {str(instance.doc_id): instance for instance in task.instances}

    def task(self) -> Task:
        """Return the task. Raises InputError where the metric is not right-or-wrong."""
        questions = tuple(Question(key, instance.args[0], str(self._task.doc_to_target(instance.doc)), verbatim=True)
                          for key, instance in self._instances.items())
        self._judge(questions[0], "")
        version = self._task.config.metadata or {}
        source = f"lm-evaluation-harness, version {version.get('version', 'unknown')} of the task"
        return Task(f"{self._name}:{self._filter.name}", source, questions, self._judge)

    def _judge(self, question: Question, reply: str) -> tuple[str | None, bool]:
        """Filter a reply as the harness does, cut at the texts that end an answer, and take its first metric."""
        instance = deepcopy(self._instances[question.id])
        ends = [place for end in self._until if (place := reply.find(end)) >= 0]
        instance.resps = [reply[: min(ends, default=len(reply))]]
        self._filter.apply([instance])
        read = instance.filtered_resps[self._filter.name]
        metric, value = next(iter(self._task.process_results(instance.doc, [read]).items()))
        if value not in (0, 1):
            raise InputError(f"{self._name}: its metric {metric} gives {value!r}, which is neither right nor wrong")
        return (None if read in ("", "[invalid]") else str(read)), bool(value)
