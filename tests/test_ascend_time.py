"""Simulated time: the rates' sources, the clock's rules, the die, the trace, and published times."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from anychip.ascend.rates import Constant, load_rates
from anychip.ascend.targets import find_target, list_targets
from anychip.errors import NotSupported

needs_ascend = pytest.mark.skipif(importlib.util.find_spec("ascendnpuir") is None, reason="needs the extra 'ascend'")


@pytest.mark.parametrize("chip", ["ascend910b", "ascend910b3", "ascend910c", "ascend950", "ascend950dt"])
def test_every_constant_has_a_source_or_is_a_guess_with_a_range(chip: str) -> None:
    rates = load_rates(find_target(chip))
    for constant in (rates.clock, *rates.die.values(), *rates.rate.values(), *rates.op.values()):
        assert constant.source in rates.sources
        if constant.source == "ours":
            assert constant.guess and constant.low is not None and constant.high is not None


def test_a_guess_without_a_whole_range_is_refused() -> None:
    with pytest.raises(ValueError, match="low and high stand together"):
        Constant(1, "cycles", "ours", guess=True, low=0.5)
    with pytest.raises(ValueError, match="outside its range"):
        Constant(3, "cycles", "ours", guess=True, low=0.5, high=2)


def test_a_chip_without_rates_says_which_file_to_write() -> None:
    with pytest.raises(NotSupported, match=r"rates/dav-m300\.toml"):
        load_rates(next(target for target in list_targets() if target.arch == "dav-m300"))


def test_changing_a_guess_changes_that_constant_alone() -> None:
    rates = load_rates(find_target("ascend910b"))
    for guess in rates.guesses():
        changed = rates.changed(guess.key, guess.high)
        assert changed != rates and guess.low <= guess.value <= guess.high
    assert rates.changed("op.vsort", 2.0).op["vsort"].repeat == 2 * rates.op["vsort"].repeat


@pytest.fixture(scope="module")
def launched():
    """A product of 4 x 4 tiles on the cube, recorded without its numbers."""
    pytest.importorskip("triton")
    from anychip.ascend.compile import compile_kernel
    from anychip.ascend.die import record
    from anychip.kernels.example import Launch, signature
    from anychip.kernels.matmul import matmul, plan_product

    a, b = torch.zeros(1, 512, 1024, dtype=torch.bfloat16), torch.zeros(1, 1024, 512, dtype=torch.bfloat16)
    args, constants = plan_product(a, b, torch.zeros(1, 512, 512, dtype=torch.bfloat16), "nn", (128, 128, 256))
    launch = Launch(args, (16, 1), constants, ("out",))
    return record(compile_kernel(matmul, signature(launch), constants, "ascend910b"), launch.args, launch.grid,
                  numerics=False)


@needs_ascend
def test_the_cube_is_busy_for_its_products_and_no_longer(launched) -> None:
    time = launched.recording.times(load_rates(launched.target))[0]
    products = 128 * 128 * 1024 / 16**3
    assert products < time.busy[0][2] < 1.1 * products
    assert abs(sum(time.causes.values()) - time.cycles) < 1e-6 * time.cycles


@needs_ascend
def test_a_slower_constant_never_makes_a_kernel_faster(launched) -> None:
    rates = load_rates(launched.target)
    before = launched.time(rates).time_s
    slower = [launched.time(rates.changed(key, 4 * rates.rate[key.split(".")[1]].value)).time_s
              for key in ("rate.gm_read_latency", "rate.mad_head", "rate.row", "rate.flag_latency", "rate.issue")]
    assert all(time >= before for time in slower) and max(slower) > before


@needs_ascend
def test_more_blocks_than_cores_take_turns(launched) -> None:
    rates = load_rates(launched.target)
    one = launched.time(rates)
    many = replace(launched, num_blocks=16 * launched.num_cores, argument_bytes=0).time(rates)
    assert 15 * (one.time_s - one.launch_s) < many.time_s - many.launch_s < 17 * (one.time_s - one.launch_s)
    assert {span.core for span in many.schedule} == set(range(launched.num_cores))


@needs_ascend
def test_little_memory_bandwidth_slows_transfers_down_until_it_suffices(launched) -> None:
    rates = load_rates(launched.target)
    slow = launched.time(rates.changed("die.hbm", 0.01))
    least = slow.hbm_bytes / (0.01e12 * rates.die["hbm_share"].value)
    assert slow.slowdown > 1 and least <= slow.time_s - slow.launch_s < 1.05 * least
    assert launched.time(rates, warm=True).hbm_bytes == 0 and launched.time(rates).hbm_bytes > 0


@needs_ascend
def test_the_trace_has_each_pipe_and_each_program(launched) -> None:
    from anychip.ascend.trace import Span, chrome_trace

    rates = load_rates(launched.target)
    spans = [Span(op, "k.py:1", core, pipe, start / 1e9, end / 1e9)
             for _, op, core, pipe, start, end in launched.recording.spans(0, rates)]
    trace = chrome_trace("matmul", spans, launched.time(rates).schedule)
    names = {event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    assert {"cube", "MTE1", "MTE2", "FIX", "core 15"} <= names
    assert sum(event["name"].startswith("program ") for event in trace["traceEvents"]) == 16


@needs_ascend
def test_published_products_are_predicted_within_12_percent_and_tilings_in_order() -> None:
    from anychip.ascend.published import compare_published, table

    comparison = compare_published(names=["PTO 1536", "PTO 3072", "17408x5120", "base 128x256x64"], sensitivity=False)
    assert comparison.median_error() < 0.12 and comparison.ranks_tilings()
    assert "order of the tilings of one product: right" in table(comparison)
