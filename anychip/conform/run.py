"""Judging one implementation: the suite's cases, its ops on hard inputs, and the known bugs that failures resemble."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import BundleError
from . import peer
from .cases import Suite, shipped
from .judge import Outcome, Tested, judge
from .layers import judge_layers
from .likeness import Signatures, likeness
from .logits import Functions, functions_of, layer_of, open_file, ops_of
from .report import Report, as_words
from .rounding import roundings
from .user_ops import judge_ops
from .weights import WeightSet, export, weight_set

Tell = Callable[[str], None]
_CUT = "text of 257"  # asked again with shrinking prompts
_CACHE = "prefix cache"
_STALE = ("only prompts that reuse a part of a cached prompt fail: after the cut, entries or compressor states of the "
          "dropped tokens are still read (a stale cache, as in vllm-project/vllm-ascend#9111)")
_ROUNDED = "text of 320"  # the case that roundings are traced on


def judge_file(path: Path, sets: Sequence[str], dtype: str, naming: str, tell: Tell) -> Report:
    """Judge a Python file's model functions and its layers on the sets, and its ops on hard inputs with gradients.

    Where the file defines `load(folder)`, it is called with each set's exported weights (in `naming`) before them.
    """
    module, report = open_file(path), Report(str(path), dtype, [])
    if ops_of(module):
        tell("ops on hard inputs")
        rows, words = judge_ops(path, ops_of(module), dtype)
        report.rows.extend(rows)
        report.likely.update({"ops": words} if words else {})
    layer = layer_of(module)
    for name in sets if functions_of(module) or layer is not None else ():
        chosen, suite = _opened(name)
        functions = _loaded(module, chosen, naming)
        if layer is not None:
            report.rows.extend(judge_layers(layer, chosen, dtype, tell))
        if functions.found:
            _judge_set(report, (chosen, suite), functions, tell)
    return report


def judge_transformers(sets: Sequence[str], dtype: str, tell: Tell) -> Report:
    """Judge the installed transformers' V4; in bf16, say also where it rounds. Raises NotSupported without it."""
    report = Report(f"transformers {peer.version()}", dtype, [])
    for name in sets:
        chosen, suite = _opened(name)
        with peer.opened(chosen, dtype) as model:
            _judge_set(report, (chosen, suite), peer.functions(model), tell)
        if dtype == peer.ROUNDS:
            tell("where it rounds")
            case = next(case for case in suite.cases if case.name == _ROUNDED)
            report.roundings[name] = roundings(chosen, case)
    return report


def judge_endpoint(label: str, tested: Tested, name: str, dtype: str, tell: Tell) -> Report:
    """Judge an endpoint, which runs one weight set. One text is asked again with a cached prefix that must be cut."""
    report = Report(label, dtype, [])
    chosen, suite = _opened(name)
    cut = next(case for case in suite.cases if case.name == _CUT)
    cut = replace(cut, name=f"{_CUT}, shrinking prompts", part=_CACHE, kind="shrinking")
    _judge_set(report, (chosen, replace(suite, cases=(*suite.cases, cut))), tested, tell)
    return report


def _judge_set(report: Report, pair: tuple[WeightSet, Suite], tested: Tested, tell: Tell) -> None:
    chosen, suite = pair
    outcome: Outcome = judge(tested, suite, report.dtype, lambda case: tell(f"{chosen.name}: {case}"))
    report.rows.extend(outcome.rows)
    if {case.part for case, _seen in outcome.failed} == {_CACHE}:
        report.likely[chosen.name] = [_STALE]
    elif outcome.failed:
        found = likeness(Signatures(chosen), outcome.failed, lambda fault: tell(f"{chosen.name}: is it {fault}?"))
        report.likely[chosen.name] = as_words(found)


def _opened(name: str) -> tuple[WeightSet, Suite]:
    """Return a set and its golden vectors. Raises BundleError where they do not belong together."""
    chosen, suite = weight_set(name), shipped(name)
    if chosen.digest != suite.digest:
        raise BundleError(f"the golden vectors of {name} were made with other weights (sha256 {suite.digest[:12]}, "
                          f"here {chosen.digest[:12]}): run tools/make_conform.py, or install anychip again")
    return chosen, suite


def _loaded(module: ModuleType, chosen: WeightSet, naming: str) -> Functions:
    """The file's functions, after its `load` has read the exported weights where it has one."""
    load: Any = getattr(module, "load", None)
    if load is not None:
        with tempfile.TemporaryDirectory() as folder:
            export(chosen, Path(folder, chosen.name), naming)
            load(str(Path(folder, chosen.name)))
    return Functions(functions_of(module), chosen.config.vocab_size)
