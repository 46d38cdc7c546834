"""Published rows: what they say, as jobs that the planner can be asked, or why they cannot be.

Columns are those of `published.csv`: id, system, model, params_total, params_active, chip, n_chips, task, parallelism,
seq_len, batch_tokens, precision, metric, value, unit, source, note.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ..chips.facts import load_facts
from ..errors import AnychipError, InputError
from .cluster import Cluster, usual_cluster
from .models import Model, find_model

COLUMNS = ("id", "system", "model", "chip", "n_chips", "task", "parallelism", "seq_len", "batch_tokens", "precision",
           "metric", "value", "unit", "source", "note")
# First words of `chip` -> the facts file, and how many devices one published chip is.
_CHIPS = (("910b1", "ascend910b1", 1), ("910b2", "ascend910b2", 1), ("910b3", "ascend910b3", 1),
          ("910b4", "ascend910b4", 1), ("910b", "ascend910b2", 1), ("910c", "ascend910c", 2),
          ("950dt", "ascend950dt", 1), ("950pr", "ascend950pr", 1), ("gb300", "gb300", 1), ("gb200", "gb200", 1),
          ("b300", "b300", 1), ("b200", "b200", 1), ("h200", "h200", 1), ("h100", "h100", 1), ("h800", "h800", 1),
          ("hopper", "h800", 1), ("h20", "h20", 1), ("a100", "a100", 1), ("a800", "a100", 1))
# First words of `system` -> the training software whose constants apply.
_STACKS = (("megatron-bridge 25", "bridge-2025"), ("megatron-bridge", ""), ("nemo automodel", "automodel"),
           ("nemo", "megatron-lm"),
           ("torchtitan-npu", "torchtitan-npu"), ("torchtitan", "torchtitan"), ("cann-recipes-train", "torchtitan-npu"),
           ("mindspeed", "mindspeed"), ("mindformers", "mindspeed"), ("modellink", "modellink"), ("pangu", "in-house"),
           ("megatron-core moe paper", ""), ("megatron", "megatron-lm"), ("flagperf", "megatron-lm"),
           ("deepseek", "in-house"), ("llama 3", "in-house"),
           ("megascale", "in-house"))
PRECISIONS = (("nvfp4", "fp4"), ("mxfp8", "fp8"), ("fp8", "fp8"), ("w4a8", "int8"), ("w8a8", "int8"), ("int8", "int8"),
              ("fp16", "bf16"), ("bf16", "bf16"), ("amp", "bf16"))


class Unusable(Exception):
    """A row that cannot be modelled; the message is the reason."""


@dataclass(frozen=True)
class Row:
    """One published row as text."""

    fields: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.fields.get(name) or ""

    @property
    def words(self) -> str:
        """Everything that conditions are read from, in lower case."""
        return " ".join(self[name] for name in ("system", "parallelism", "precision", "note")).lower()

    @property
    def value(self) -> float:
        """The published figure. Raises Unusable where there is none."""
        try:
            return float(self["value"].replace(",", ""))
        except ValueError:
            raise Unusable("no figure was published") from None


def read_rows(path: Path | None = None) -> list[Row]:
    """Read rows from a CSV file with `published.csv`'s columns; the shipped rows by default.

    Raises InputError for a file that cannot be read or lacks columns.
    """
    if path is None:
        text = (files("anychip.plan") / "published.csv").read_text(encoding="utf-8")
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{path} lacks the column(s) {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    return [Row(fields) for fields in reader]


def row_model(row: Row) -> Model:
    """Return the row's model. Raises Unusable for one that has no description."""
    for name in (row["model"], re.sub(r"[ -]\d+B$", "", row["model"])):
        try:
            return find_model(name)
        except AnychipError:
            continue
    raise Unusable(f"the shape of {row['model']!r} is not described (anychip/plan/architectures.toml)")


def row_cluster(row: Row) -> tuple[Cluster, int]:
    """Return the row's cluster, and how many of its devices one published chip is."""
    words = row["chip"].lower()
    if "vs" in words.split():
        raise Unusable("it compares two chips without naming a run")
    named = next(((facts, per) for start, facts, per in _CHIPS if words.startswith(start)), None)
    if named is None:
        raise Unusable(f"the chip {row['chip']!r} is not known" if words.strip("() ") else "no chip is named")
    count = first_number(row["n_chips"])
    if count is None or count < 1:
        raise Unusable("the number of chips is not stated")
    facts = load_facts(named[0])
    if "@500w limit" in row.words:
        facts = facts.with_value("power.tdp", 500)
    if "hbm2e 2.4tb/s" in row.words:
        facts = facts.with_value("memory.bandwidth", 2.4)
    try:
        return usual_cluster(facts, int(count) * named[1]), named[1]
    except AnychipError as error:
        raise Unusable(str(error)) from error


def row_stack(row: Row) -> str:
    """Return the training software whose fitted efficiency applies, empty for none of its own."""
    words = row["system"].lower()
    return next((stack for start, stack in _STACKS if words.startswith(start)), "in-house")


def row_precision(row: Row) -> str:
    """Return the number format of the products."""
    words = row["precision"].lower()
    return next((fmt for word, fmt in PRECISIONS if word in words), "bf16")


def first_number(text: str) -> float | None:
    """Return the first number in a text, with K and M, or None."""
    match = re.search(r"(\d[\d,]*\.?\d*(?:e\d+)?)\s*([KkM]?)\b", text)
    if not match:
        return None
    return float(match[1].replace(",", "")) * {"": 1, "k": 1024, "K": 1024, "M": 2**20}[match[2]]
