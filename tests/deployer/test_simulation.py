"""The simulator against queueing theory, and the scaler in it.

docs/autoscaling.md has the tables of 20 seeds; here are fewer, and only what must hold for the page to be true.
"""

import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer.autoscaler import Settings
from tests.deployer.simulate import KNATIVE, WORK, WORK_2_STARTS, World, interval, poisson, row, simulate, trace

PAGE = Path(__file__).parents[2] / "docs" / "autoscaling.md"
SERVICE = 0.08


def erlang_c(servers, load):
    """The probability to wait in M/M/c, `load` in Erlangs."""
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(load**k / math.factorial(k) for k in range(servers)) + last)


def constant(rate, seconds, seed, **service):
    return poisson(lambda at: rate, rate, seconds, seed, **service)


def agree(figures, theory, within):
    """The theory lies in the figures' 99 % interval or so, and that is narrow enough to mean something."""
    mean, half = interval(figures)
    assert half < within * theory
    assert mean == pytest.approx(theory, abs=1.5 * half)


def test_three_replicas_of_four_slots_are_an_m_m_12_queue():
    load, seconds = 0.8 * 12, 500.0
    runs = [simulate(World(replicas=3, seconds=seconds), constant(load / SERVICE, seconds, seed)) for seed in range(8)]
    wait = erlang_c(12, load)
    assert wait == pytest.approx(0.3688, abs=5e-5)
    agree([run.slower_than(1e-9) for run in runs], wait, within=0.05)
    agree([statistics.fmean(run.waits.values()) for run in runs], wait * SERVICE / (12 - load), within=0.1)
    agree(
        [statistics.fmean(took for _, took in run.sojourns) for run in runs], SERVICE + wait * SERVICE / (12 - load), within=0.02
    )


def test_one_slot_and_equal_requests_are_an_m_d_1_queue():
    load, seconds = 0.7, 2000.0
    world = World(slots=1, seconds=seconds)
    runs = [simulate(world, constant(load / SERVICE, seconds, seed, fixed=True)) for seed in range(8)]
    agree([statistics.fmean(run.waits.values()) for run in runs], load * SERVICE / 2 / (1 - load), within=0.05)


@pytest.mark.parametrize("policy", [WORK, KNATIVE])
def test_nothing_is_lost_and_littles_law_holds(policy):
    run = policy.run("bursts", 4.0, seed=3)
    assert run.arrived == len(trace("bursts", 3)) == len(run.sojourns) + run.left
    rate, took = run.arrived / 900, statistics.fmean(took for _, took in run.sojourns)
    assert run.request_seconds / 900 == pytest.approx(rate * took, rel=0.01)


def test_the_requests_of_a_replica_that_dies_are_answered_by_others():
    arrivals = constant(60.0, 300.0, seed=1)
    run = simulate(World(replicas=3, kills={100: 1, 150.5: 3}, seconds=400.0), arrivals, Settings(target=4, max_replicas=6))
    assert len(run.sojourns) == len(arrivals)
    assert run.left == 0
    assert [moment.ready for moment in run.moments if moment.at in (99, 151)] == [2, 0]


# what comes when, and how long it takes
requests = st.lists(st.tuples(st.floats(0, 30), st.floats(0.01, 3)), min_size=1, max_size=60).map(sorted)
orders = st.dictionaries(st.floats(0, 30), st.integers(1, 3), max_size=4)


@settings(max_examples=100)
@given(requests, orders, st.floats(0, 10), st.floats(0, 10))
def test_a_shorter_start_up_never_makes_a_request_wait_longer(arrivals, orders, one, other):
    """With the same orders.  A scaler may give others: see the next test."""
    sooner, later = (
        simulate(World(slots=2, startup=startup, orders=orders, seconds=1000.0), arrivals) for startup in sorted((one, other))
    )
    assert sooner.left == later.left == 0
    assert all(sooner.waits[number] <= later.waits[number] + 1e-9 for number in later.waits)


@pytest.mark.parametrize("name", ["step", "spikes", "bursts"])
def test_a_shorter_start_up_gives_a_lower_p99_with_the_scaler_too(name):
    for seed in range(2):
        p99 = [WORK.run(name, startup, seed).percentile(0.99) for startup in (1.0, 4.0, 15.0)]
        assert p99 == sorted(p99)


@given(requests, orders, st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=100)
def test_more_replicas_never_make_a_request_wait_longer(arrivals, orders, one, other):
    more, fewer = (
        simulate(World(slots=2, replicas=replicas, orders=orders, seconds=1000.0), arrivals)
        for replicas in sorted((one, other), reverse=True)
    )
    assert all(more.waits[number] <= fewer.waits[number] + 1e-9 for number in fewer.waits)


def test_a_step_is_followed_up_and_down_and_not_beyond():
    """60 requests/s of 80 ms keep 4.8 slots busy: two replicas of four slots that are planned with 70 %."""
    run = WORK.run("step", 1.0, seed=0)
    before, during, after = ([m.ready for m in run.moments if since < m.at <= since + 200] for since in (90, 390, 690))
    assert set(before) == set(after) == {1}
    assert set(during) <= {2, 3}
    assert run.peak <= 3


def test_what_comes_evenly_changes_nothing():
    for seed in range(5):
        run = simulate(World(replicas=2), constant(45.0, 900.0, seed), WORK.settings)
        assert run.sizes == [2]


def test_it_starts_no_more_at_once_than_it_may():
    run = WORK_2_STARTS.run("spikes", 15.0, seed=0)
    assert max(moment.starting for moment in run.moments) == 2
    assert max(moment.starting for moment in WORK.run("spikes", 15.0, seed=0).moments) > 2


def test_after_a_size_was_needed_it_stays_for_the_scale_down_delay():
    run = WORK.run("bursts", 4.0, seed=0)
    moments = [(moment.at, moment.decision.asked, moment.decision.replicas) for moment in run.moments]
    for at, asked, _ in moments:
        assert all(size >= asked for later, _, size in moments if at <= later < at + WORK.settings.scale_down_seconds)


@pytest.mark.parametrize("startup", [1.0, 4.0, 15.0])
def test_bursts_cost_fewer_replicas_than_with_knatives_rules_and_no_slower_answers(startup):
    ours, theirs = ([policy.run("bursts", startup, seed) for seed in range(3)] for policy in (WORK, KNATIVE))
    for work, knative in zip(ours, theirs, strict=True):
        assert work.replica_seconds < 0.9 * knative.replica_seconds
        assert work.peak < knative.peak
        assert work.percentile(0.99) < knative.percentile(0.99)


@pytest.mark.parametrize(("name", "policy"), [("bursts", WORK), ("spikes", KNATIVE)])
def test_the_page_has_the_figures_that_the_script_makes(name, policy):
    """Else: `python -m tests.deployer.simulate table`, and have another look at what the page says about them."""
    of_trace = PAGE.read_text().partition(f"### {name}\n")[2].partition("\n#")[0]
    assert row(name, 4.0, policy, seeds=20) in of_trace
