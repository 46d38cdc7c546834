"""The planner's failures, simulated runs and costs, against closed forms and published figures."""

import math
from dataclasses import replace

import pytest

from anychip.chips.facts import load_facts
from anychip.errors import InputError
from anychip.plan.cost import Spent, compare, cost_of, given_price, price_of
from anychip.plan.failures import DAY_S, find_rate, given_rate, published_rates, rate_of_chip
from anychip.plan.reliability import ReliabilityJob, best_interval_s, daly_interval_s, simulate_run, young_interval_s


def job(**changes):
    """A month on 8,192 devices that fail every 6.25 h."""
    return replace(ReliabilityJob(8192, 30 * DAY_S, given_rate(3.75)), **changes)


@pytest.mark.parametrize(("name", "devices", "hours"), [("llama3", 16384, 3.09), ("rsc1", 16384, 1.8),
                                                        ("rsc1", 131072, 0.23), ("crusoe", 1600, 14)])
def test_published_rates_give_the_published_time_between_failures(name, devices, hours):
    assert published_rates()[name].mtbf_s(devices) / 3600 == pytest.approx(hours, rel=0.03)


def test_causes_add_up_to_the_count():
    rate = published_rates()["llama3"]
    assert sum(cause.count for cause in rate.causes) == rate.count == 419
    low, high = rate.interval()
    assert low < rate.per_device_s < high < 1.11 * rate.per_device_s


def test_ascend_has_no_published_rate_and_an_unknown_name_gets_the_choices():
    assert rate_of_chip("ascend910c") is None
    with pytest.raises(InputError, match="llama3, rsc1.*Did you mean 'llama3'"):
        find_rate("llama4")
    with pytest.raises(InputError, match="above 0"):
        find_rate("-1")


def test_without_failures_only_checkpoints_cost():
    run = simulate_run(job(rate=given_rate(1e-9), interval_s=1000.0, stall_s=10.0, write_s=10.0), trials=5)
    stops = math.ceil(30 * DAY_S / 1000) - 1
    assert run.effective.mean == pytest.approx(30 * DAY_S / (30 * DAY_S + 10 * stops))
    assert run.failures_per_day.mean == 0


def test_the_simulation_agrees_with_the_exact_expectation():
    """Mean time to finish n intervals with exponential failures and a fixed restart: (e^(m(tau+c)) - 1)(1/m + R) each,
    where failures during the restart do not count (here they are rare: R is a minute)."""
    tau, stall, restart, mtbf = 3600.0, 60.0, 60.0, 6.25 * 3600 * 1.024
    it = job(interval_s=tau, stall_s=stall, write_s=stall, detect_s=0.0, restart_s=restart)
    assert it.mtbf_s == pytest.approx(mtbf, rel=0.03)
    each = (math.exp((tau + stall) / it.mtbf_s) - 1) * (it.mtbf_s + restart)
    found = simulate_run(it, trials=1000, seed=1).wall_h.mean
    assert found == pytest.approx(30 * DAY_S / tau * each / 3600, rel=0.01)


def test_lost_hours_add_up_to_the_wall_time():
    run = simulate_run(job(spare_nodes=1, slow_share=0.1, slow_factor=1.5, corruption_check_s=1800.0,
                           rate=published_rates()["llama3"]), trials=50)
    assert sum(run.lost_h.values()) + 30 * 24 == pytest.approx(run.wall_h.mean, rel=1e-9)


def test_young_daly_and_the_simulated_optimum_agree_where_failures_are_rare():
    assert daly_interval_s(10, 1e6) == pytest.approx(young_interval_s(10, 1e6), rel=0.01)
    it = job(stall_s=30.0, write_s=30.0, detect_s=0.0, restart_s=60.0)
    best = simulate_run(replace(it, interval_s=best_interval_s(it)), trials=200, seed=9).wall_h.mean
    assert best <= simulate_run(it, trials=200, seed=9).wall_h.mean * 1.002


@pytest.mark.parametrize("worse", [{"spare_nodes": 0}, {"restart_s": 3600.0}, {"write_s": 3000.0}, {"slow_share": 1.0,
                                   "slow_factor": 1.2}, {"corruption_check_s": 40000.0}, {"detect_s": 1800.0}])
def test_what_is_worse_trains_less(worse):
    base = job(rate=published_rates()["llama3"])
    assert simulate_run(replace(base, **worse), trials=60).effective.mean < simulate_run(base, trials=60).effective.mean


def test_the_interval_covers_the_rates_own_uncertainty():
    certain, counted = (replace(published_rates()["llama3"], count=count) for count in (None, 4))
    spread = [simulate_run(job(rate=rate), trials=300).failures_per_day for rate in (certain, counted)]
    assert spread[1].high - spread[1].low > 2 * (spread[0].high - spread[0].low)


def test_impossible_runs_are_refused_with_all_reasons():
    with pytest.raises(InputError, match=r"0 devices.*write_s=1.0 must be at least stall_s=5.0"):
        ReliabilityJob(0, 1.0, given_rate(1), write_s=1.0)
    with pytest.raises(InputError, match="would never end"):
        simulate_run(job(rate=given_rate(1e5)))


def test_cost_counts_devices_and_keeps_the_unknown_unknown():
    h100, ascend = load_facts("h100"), load_facts("ascend910b4")
    cost = cost_of(h100, 1000.0)
    assert cost.money == (1990.0, 5000.0) and cost.energy_kwh == 700.0
    assert price_of(ascend) is None and cost_of(ascend, 10.0).money is None


def test_the_founding_question_is_answered_in_one_sentence():
    h100, ascend = load_facts("h100"), load_facts("ascend910c")
    first = Spent("64 x h100", 100.0, 0.5, cost_of(h100, 6400.0, given_price(3.0)))
    second = Spent("64 x ascend910c", 161.0, None, cost_of(ascend, 10240.0, given_price(1.5)))
    assert compare(first, second).sentence().startswith(
        "on 64 x ascend910c this training takes 61 % more time and 20 % less money than on 64 x h100")
    assert compare(first, second).energy is None  # a whole system's power against a device's
    assert compare(first, replace(first, cost=cost_of(h100, 12800.0))).energy == 2
    mixed = compare(first, replace(second, cost=cost_of(ascend, 1.0, given_price(10.0, "CNY"))))
    assert mixed.money is None and "USD and CNY" in mixed.sentence()
