"""The planner's expectation in a matrix: what so many devices would serve of each family's published model."""

from __future__ import annotations

from collections.abc import Mapping

from ...chips.facts import ChipFacts, known_chips, load_facts
from ...errors import AnychipError
from ...plan.cluster import parse_cluster
from ...plan.cost import Price
from ...plan.fit import Serving
from ...plan.models import find_model
from ...plan.pools import Pools, Request, plan_pools
from ...record import Kind, Quantity
from .block import Block, with_ratios
from .grid import Grid, Key
from .speed import cost_block, known_prices

PROMPT, ANSWER, TOKEN_S = 4096, 1024, 0.05


def planned_blocks(grid: Grid, devices: int, prices: Mapping[str, Price]) -> list[Block]:
    """Return prefill and decode rates a device, and what a million tokens then cost: `anychip plan serve`'s figures.

    A chip without published facts, or a plan that does not fit, is told beside its cell.
    """
    if not devices:
        return []
    found: dict[Key, Pools] = {}
    why: dict[Key, str] = {}
    shared: dict[tuple[str, str], Pools | str] = {}
    for key, bundle in grid.bundles.items():
        speed = bundle.tables["speed"]
        name = speed["facts"]["name"] if speed["facts"] else ""
        pair = speed["model"], name
        if pair not in shared:
            shared[pair] = _plan(*pair, devices)
        plan = shared[pair]
        if isinstance(plan, str):
            why[key] = f"{pair[0]}: {plan}"
        else:
            found[key] = plan
            why[key] = f"{pair[0]}, weights {_format(load_facts(name))}"
    rates = []
    for step in ("prefill", "decode"):
        cells = {key: Quantity(getattr(plan, step).tokens_per_s_device, "tokens/s", Kind.SIMULATED)
                 for key, plan in found.items()}
        note = (f"a device of {devices}, prompts of {PROMPT} and answers of {ANSWER} tokens, at most "
                f"{1e3 * TOKEN_S:g} ms between tokens; the published model of each family")
        rates.append(with_ratios(Block("Plan", f"planned {step}", "tokens/s", note, cells, why=dict(why)), grid.models,
                                 grid.chips))
    known = known_prices(grid, prices)
    costs = [cost_block(grid, rate, known) for rate in rates if rate.cells]
    return [*rates, *(cost for cost in costs if cost.cells)]


def _format(facts: ChipFacts) -> str:
    """The narrowest weights that the chip multiplies itself, of those that serving is planned with."""
    return "fp8" if "fp8" in facts.formats else "w8a8" if "int8" in facts.formats else "bf16"


def _plan(model: str, chip: str, devices: int) -> Pools | str:
    if chip not in known_chips():
        return "no published facts of this chip to plan with"
    serving = Serving(_format(load_facts(chip)), "bf16", 1)
    try:
        return plan_pools(find_model(model), parse_cluster(f"{devices}x{chip}"), serving, Request(PROMPT, ANSWER),
                          token_s=TOKEN_S)
    except AnychipError as error:
        return str(error)
