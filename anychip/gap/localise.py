"""Where a port departs: the faulty op, or the part of the model around the ops, in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..faults import PARTS
from .guided import Departure

# (op, start of the argument's path) -> part of the model that makes it; weights are told by `_WEIGHTS`.
_PARTS = {
    ("attention", "keys.window."): "window", ("attention", "keys.window_NC"): "window",
    ("index_topk", "visible"): "visible", ("index_topk", "topk"): "indexer",
    ("rope", "cos_TR"): "angles", ("rope", "sin_TR"): "angles",
    ("norm_rope", "cos_TR"): "angles", ("norm_rope", "sin_TR"): "angles",
    ("compress", "previous_E"): "overlap", ("compress", "first_E"): "compressor_windows",
    ("compress", "value_NW"): "compressor_state", ("compress", "gate_NW"): "compressor_state",
    ("grouped_attention", "ranges."): "rows", ("attention", "keys.compressed_MC"): "cache",
    ("grouped_attention", "key_NGC"): "cache", ("grouped_attention", "value_NGV"): "cache",
    ("grouped_attention", "scale"): "attention_scale", ("attention", "scale"): "attention_scale",
    ("route", "rule"): "route_rule", ("route", "ids_TK"): "hash_table", ("experts", "weight_TK"): "routing_scale",
    ("experts", "limit"): "swiglu_limit", ("mlp", "limit"): "swiglu_limit",
}
_WEIGHTS = {"linear": ("weight_OI",), "grouped_linear": ("weight_PI",), "embed": ("weight_Vd",),
            "layer_norm": ("weight_C", "bias_C"), "rms_norm": ("weight_C",), "norm_rope": ("weight_C",),
            "attention": ("sink_H",), "compress": ("ape_mW",),
            "route": ("weight_Ed", "bias_E"), "mlp": ("w1_Fd", "w3_Fd", "w2_dF"), "experts": ("banks",),
            "hc_pre": ("weights",), "hc_head": ("weights",), "cross_entropy": ("head_Vd",)}


def part_of(departure: Departure) -> str:
    """Return the part of the model (`faults.PARTS`) that makes the argument which departs."""
    op, path = departure.op, departure.argument
    if path.startswith(_WEIGHTS.get(op, ("?",))):
        return "weights"
    if path.startswith(("called", "never")):
        return "indexer" if "index_topk" in (op, path.rsplit(" ", 1)[-1], departure.feeds) else "data flow"
    if path in ("cos_TR", "sin_TR") and departure.before == "compress":
        return "entry_angles"
    if op == "attention" and path.startswith("keys.selected"):
        return "indexer" if departure.before == "index_topk" else "visible"
    if op == "hc_post" and path == "y_Td" and departure.before == "mlp":
        return "shared_expert"
    if departure.layer.startswith("mtp"):
        return {"embed": "mtp_token", "rms_norm": "mtp_input"}.get(op, "data flow")
    return next((part for (name, start), part in _PARTS.items() if name == op and path.startswith(start)), "data flow")


@dataclass(frozen=True)
class Place:
    """The likeliest place of a fault: an op or a part of the model, what was seen there, and in how many places."""

    part: str
    kind: str  # "op", "op gradient", "model", "gradient"
    text: str
    size: float


def locate(op_rows: list[dict[str, Any]], departures: list[Departure], gradients: list[dict[str, Any]]) -> list[Place]:
    """Return the places where a chip departs, likeliest first; none where it does not.

    An op that is wrong on the golden's inputs is wrong by itself, whatever the model does: ops come first, forward
    before backward. Then the model around the ops. Gradients of the whole model only where nothing before departs.
    """
    places = _ops(op_rows, "forward") + _ops(op_rows, "backward") + _model(departures)
    return places or _gradients(gradients)


def _ops(rows: list[dict[str, Any]], direction: str) -> list[Place]:
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for row in rows:
        if row["direction"] == direction and row["gap"]:
            count, worst = found.get(row["op"], (0, row))
            found[row["op"]] = count + 1, max(worst, row, key=lambda r: r["error"])
    others = {"forward": "op", "backward": "op gradient"}
    places = []
    for op, (count, row) in found.items():
        what = "its result" if direction == "forward" else f"its gradient ({row['of']})"
        places.append(Place(op, others[direction], f"op {op}: {what} is {row['error']:.2g} from the float64 golden "
                            f"where the format explains {row['allowed']:.2g} ({count} case(s), largest on: "
                            f"{row['case']})", row["error"]))
    return sorted(places, key=lambda place: -place.size)


def _model(departures: list[Departure]) -> list[Place]:
    places: dict[str, tuple[int, Departure]] = {}
    for departure in departures:
        part = part_of(departure)
        count, first = places.get(part, (0, departure))
        places[part] = count + 1, first
    found = []
    for part, (count, d) in places.items():
        where = f"{d.layer}, before {d.op}" if d.layer else f"before {d.op}"
        where += f" (on the way to {d.feeds})" if d.feeds else ""
        found.append(Place(part, "model", f"{PARTS[part]}: in the run '{d.scenario}', {where}: {d.argument} departs "
                           f"by {d.error:.2g} though every op before returned the reference's result ({count} place(s) "
                           "in all)", d.error))
    return found


def _gradients(rows: list[dict[str, Any]]) -> list[Place]:
    wrong = [row for row in rows if row["gap"]]
    if not wrong:
        return []
    worst = max(wrong, key=lambda row: row["error"])
    return [Place("gradient", "gradient", f"{PARTS['gradient']}: {len(wrong)} of {len(rows)} tensors, most of all "
                  f"{worst['name']} ({worst['error']:.2g} from the reference), though every op's own gradient is right",
                  worst["error"])]
