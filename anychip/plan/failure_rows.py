"""Published failure rows: the time between failures that a source's own rate and size imply, against its figure."""

from __future__ import annotations

import re

from .failures import DAY_S, given_rate
from .rows import Row, Unusable, first_number

_RATE = (r"([\d.]+) per 1000 node-days", r"r_f ?= ?([\d.]+)", r"nodes x ([\d.]+)/1000")
_SYSTEMS = {"meta rsc-1": 6.5, "meta rsc-2": 2.34}  # arXiv:2410.21680, per 1000 node-days


def failure_prediction(row: Row) -> tuple[float, float, str]:
    """Return (predicted, published, how) of a row with a size and a rate; hours between failures, or a count.

    Raises Unusable where the row gives no time between failures, no size or no rate.
    """
    metric = row["metric"].lower()
    if metric not in ("mttf", "mtbf", "system_mtti", "interruptions_unexpected"):
        raise Unusable(f"{row['metric']} is no time between failures of a job")
    if "empirical" in row["note"] and "would give" in row["note"]:
        raise Unusable(f"the source says that its own rate does not hold here: {row['note'].removeprefix('S: ')}")
    devices = first_number(row["n_chips"])
    if devices is None:
        raise Unusable("the size of the job is not stated")
    found = next((match for pattern in _RATE if (match := re.search(pattern, row["note"]))), None)
    rate = float(found[1]) if found else _SYSTEMS.get(row["system"].lower())
    if rate is None:
        raise Unusable("no failure rate is stated, and this system's is not known")
    per_node = 8
    hours = given_rate(rate, per_node).mtbf_s(int(devices)) / 3600
    how = f"{rate:g} per 1000 node-days on {int(devices) // per_node} nodes of {per_node}"
    if metric == "interruptions_unexpected":
        days = first_number(row["unit"].replace("in ", "")) or 0
        if not days:
            raise Unusable("the time counted over is not stated")
        return days * DAY_S / 3600 / hours, row.value, how
    if "day" in row["unit"]:
        raise Unusable("a time between failures of one host, not of a job")
    return hours, row.value, how
