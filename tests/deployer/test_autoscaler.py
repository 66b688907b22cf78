"""One decision of the scaler: what it asks for, what it never does, and Knative's own vectors."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.autoscaler import Metric, Observation, Sample, Settings, State, decide, knative

FOUR_SLOTS = Settings(target=4, max_replicas=20)


def settled(ready=1, **others):
    """The state of a scaler that has been deciding for long and found `ready` replicas."""
    return State(at=0.0, since=-1000.0, replicas=ready, **others)


def seconds_of(settings, state, observation, count, since=0.0):
    """The last decision of a number of seconds in which nothing changes, and the state then."""
    for number in range(1, count + 1):
        decision, state = decide(settings, state, observation, since + number)
    return decision, state


def steady(rate, service, **others):
    return Sample(arrivals=rate, finished=rate, busy_seconds=rate * service, **others)


@pytest.mark.parametrize(
    ("settings", "sample", "replicas", "why"),
    [
        pytest.param(
            FOUR_SLOTS,
            steady(0, 0),
            1,
            "1 replica: no request yet, 2.8 per replica; at least 1 (minReplicas)",
            id="nothing to do leaves one",
        ),
        pytest.param(
            FOUR_SLOTS,
            steady(35, 0.08),
            1,
            "35.0 requests/s × 80 ms keep 2.80 slots busy, 2.8 per replica",
            id="a planned share is full",
        ),
        pytest.param(FOUR_SLOTS, steady(36, 0.08), 2, "2 replicas: 36.0 requests/s", id="a little more takes one more"),
        pytest.param(
            Settings(target=1, max_replicas=9), steady(21, 0.1), 3, "2.10 slots busy", id="rounding does not ask for a fourth"
        ),
        pytest.param(replace(FOUR_SLOTS, utilization=1.0), steady(50, 0.08), 1, "4 per replica", id="planned with all of it"),
        pytest.param(
            FOUR_SLOTS,
            steady(35, 0.08, waiting=60),
            2,
            "and 60 requests waiting ask for 2.40 more",
            id="a queue is drained in 2 s",
        ),
        pytest.param(
            replace(FOUR_SLOTS, request_timeout=4.0),
            steady(35, 0.08, waiting=60),
            3,
            "4.80 more",
            id="sooner where requests time out sooner",
        ),
        pytest.param(FOUR_SLOTS, steady(2, 2.5), 2, "× 2.5 s keep 5.00 slots", id="slow requests"),
        pytest.param(FOUR_SLOTS, steady(35, 0.08, in_flight=500), 1, "1 replica", id="what is in flight is not demand"),
        pytest.param(
            FOUR_SLOTS,
            Sample(arrivals=9, waiting=1, in_flight=6),
            3,
            "no request has finished yet, 6.0 in flight",
            id="unless no service time is known",
        ),
        pytest.param(FOUR_SLOTS, steady(0, 0, waiting=1), 1, "1 replica", id="a request that waits needs one"),
        pytest.param(replace(FOUR_SLOTS, min_replicas=3), steady(1, 0.08), 3, "at least 3 (minReplicas)", id="minReplicas"),
        pytest.param(
            replace(FOUR_SLOTS, max_replicas=2), steady(100, 0.08), 2, "3 wanted, at most 2 (maxReplicas)", id="maxReplicas"
        ),
        pytest.param(
            Settings(metric=Metric.RPS, target=10, max_replicas=9), steady(21, 5), 3, "rps 21.00 over 30 s", id="by rps"
        ),
        pytest.param(
            Settings(metric=Metric.CONCURRENCY, target=10, max_replicas=9),
            steady(21, 5, in_flight=15),
            3,
            "concurrency 15.00",
            id="by concurrency",
        ),
    ],
)
def test_it_asks_for_what_the_figures_take_and_says_so(settings, sample, replicas, why):
    decision, _ = seconds_of(settings, settled(), Observation(1, sample=sample), 40)
    assert decision.replicas == replicas
    assert why in decision.why


@pytest.mark.parametrize(
    ("observation", "why"),
    [
        (Observation(7), "7 replicas: unchanged, no figures for 4 s"),
        (Observation(7, sample=Sample(arrivals=3)), "no request has finished yet, and none waits"),
        (Observation(0, 7, Sample(arrivals=3, waiting=5)), "no replica has been ready yet, 5 requests waiting"),
        (Observation(3, 4, steady(0, 0), reporting=2), "only 2 of 3 ready replicas tell their figures"),
        (Observation(7, sample=steady(0, 0), reporting=5), "only 5 of 7"),
        (Observation(100, sample=steady(0, 0), reporting=13), "only 13 of 100"),
    ],
)
def test_without_figures_there_is_no_decision(observation, why):
    decision, _ = seconds_of(FOUR_SLOTS, settled(7), observation, 300)
    assert (decision.replicas, decision.asked) == (7, None)
    assert why in decision.why


@pytest.mark.parametrize(("ready", "reporting"), [(0, 0), (1, 1), (3, 3), (4, 4), (7, 6), (100, 14)])
def test_a_part_of_many_replicas_tells_enough(ready, reporting):
    decision, _ = seconds_of(FOUR_SLOTS, settled(), Observation(ready, sample=steady(50, 0.08), reporting=reporting), 1)
    assert decision.asked == 2


def test_a_second_without_figures_is_bridged_and_is_no_zero():
    _, state = seconds_of(FOUR_SLOTS, settled(2), Observation(2, sample=steady(50, 0.08)), 30)
    asked = []
    for now in range(31, 36):
        decision, state = decide(FOUR_SLOTS, state, Observation(2), now)
        asked.append(decision.asked)
    assert asked == [2, 2, 2, None, None]
    decision, state = decide(FOUR_SLOTS, state, Observation(2, sample=steady(50, 0.08)), 36)
    assert decision.asked == 2


def test_after_a_time_without_figures_the_scale_down_delay_starts_anew():
    _, state = seconds_of(FOUR_SLOTS, settled(5), Observation(5), 200)
    sizes = [5]
    for now in range(201, 301):
        decision, state = decide(FOUR_SLOTS, state, Observation(sizes[-1], sample=steady(0, 0)), now)
        sizes.append(decision.replicas)
    assert sizes[1:] == [5] * 59 + [2] + [1] * 40


def test_a_smaller_size_is_taken_only_when_it_was_enough_for_the_whole_delay():
    rates = [90] * 40 + [5] * 100 + [90] * 6 + [5] * 150
    asked, sizes, state = [], [1], settled()
    for now, rate in enumerate(rates, start=1):
        decision, state = decide(FOUR_SLOTS, state, Observation(sizes[-1], sample=steady(rate, 0.08)), now)
        asked.append(decision.asked)
        sizes.append(decision.replicas)
    assert sizes[1:] == [max(asked[max(0, now - 59) : now + 1]) for now in range(len(rates))]
    assert [size for before, size in pairwise(sizes) if size != before] == [3, 2, 1, 3, 2, 1]


@pytest.mark.parametrize(
    ("counts", "asked"),
    [
        pytest.param([34, 34, 34, 34, 46], 1, id="a chance of two deviations"),
        pytest.param([5, 5, 5, 5, 60], 2, id="twelve times as many in one second"),
        pytest.param([5, 45, 46, 45, 46], 2, id="a little more, but for some seconds"),
        pytest.param([5, 45, 46, 5, 5], 1, id="a little more for too short a time"),
    ],
)
def test_a_burst_is_told_from_chance(counts, asked):
    _, state = seconds_of(FOUR_SLOTS, settled(), Observation(1, sample=steady(counts[0], 0.08)), 100)
    for now, count in enumerate(counts, start=101):
        decision, state = decide(FOUR_SLOTS, state, Observation(1, sample=steady(count, 0.08)), now)
    assert decision.asked == asked


def test_it_shrinks_by_half_a_step_at_most():
    idle = steady(0, 0)
    sizes, state = [20], settled(20)
    for now in range(1, 70):
        decision, state = decide(replace(FOUR_SLOTS, scale_down_seconds=0), state, Observation(sizes[-1], sample=idle), now)
        sizes.append(decision.replicas)
    assert sizes[:7] == [20, 10, 5, 2, 1, 1, 1]


def test_it_grows_tenfold_a_step_at_most():
    many = replace(FOUR_SLOTS, max_replicas=1000)
    decision, _ = seconds_of(many, settled(), Observation(1, 1, steady(10_000, 0.08)), 1)
    assert (decision.asked, decision.replicas) == (286, 20)
    assert "286 wanted, from 2 in steps" in decision.why


@pytest.mark.parametrize(
    ("ready", "starting", "replicas"),
    [
        pytest.param(1, 0, 3, id="two may start"),
        pytest.param(1, 1, 3, id="one more may"),
        pytest.param(1, 2, 3, id="none more may"),
        pytest.param(1, 5, 6, id="those that are starting already are left alone"),
        pytest.param(0, 0, 2, id="not even minReplicas starts all at once"),
        pytest.param(8, 0, 9, id="enough"),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_only_so_many_replicas_start_at_once(ready, starting, replicas, known):
    settings = Settings(min_replicas=4, max_replicas=9, max_starting=2)
    sample = steady(90, 0.1) if known else None
    decision, _ = decide(settings, settled(9), Observation(ready, starting, sample), 1.0)
    assert decision.replicas == replicas
    assert ("at most 2 start at once" in decision.why) == (replicas < 9)


@pytest.mark.parametrize("metric", Metric)
def test_a_restart_changes_nothing_for_one_slow_window(metric):
    settings = Settings(metric=metric, max_replicas=20, scale_down_seconds=0)
    sizes, state = [5], State()
    for now in range(1000, 1060):
        decision, state = decide(settings, state, Observation(4, 1, steady(0, 0)), now)
        sizes.append(decision.replicas)
    assert sizes[:31] == [5] * 31
    assert sizes[31] == 2
    assert decision.asked == (0 if metric is Metric.WORK else 2)


def test_a_restart_does_not_keep_it_from_growing():
    decision, _ = decide(FOUR_SLOTS, State(), Observation(2, sample=steady(100, 0.08)), 1000.0)
    assert decision.replicas == 3


def test_a_break_in_the_decisions_is_a_restart():
    """A process that was stopped for an hour knows nothing of that hour."""
    settings = replace(FOUR_SLOTS, scale_down_seconds=0)
    _, state = seconds_of(settings, settled(5), Observation(5, sample=steady(170, 0.08)), 40)
    decision, state = decide(settings, state, Observation(5, sample=steady(0, 0)), 3640.0)
    assert (decision.asked, decision.replicas) == (0, 5)
    decision, _ = seconds_of(settings, state, Observation(5, sample=steady(0, 0)), 30, since=3640)
    assert decision.replicas == 2


def test_new_bounds_hold_at_once():
    _, state = seconds_of(FOUR_SLOTS, settled(5), Observation(5, sample=steady(170, 0.08)), 40)
    decision, _ = decide(replace(FOUR_SLOTS, max_replicas=2), state, Observation(5, sample=steady(170, 0.08)), 41.0)
    assert decision.replicas == 2
    decision, _ = decide(replace(FOUR_SLOTS, min_replicas=8), state, Observation(5), 41.0)
    assert decision.replicas == 8


def test_time_that_goes_back_is_refused():
    _, state = decide(FOUR_SLOTS, State(), Observation(1, sample=steady(1, 1)), 100.0)
    with pytest.raises(ValueError, match=r"went from 100\.0 to 99\.0; pass a clock that never goes back"):
        decide(FOUR_SLOTS, state, Observation(1), 99.0)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"min_replicas": 0}, "min_replicas is 0; set it to at least 1: nothing holds requests"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas is 2; set it to at least min_replicas, 3"),
        ({"target": 0}, "target is 0; set it to what one replica takes, above 0"),
        ({"target": float("nan")}, "target is nan"),
        ({"utilization": 70}, "utilization is 70; set it to above 0 and at most 1"),
        ({"slow_seconds": 0}, "slow_seconds is 0"),
        ({"fast_seconds": 31}, "fast_seconds is 31; set it to above 0, at most slow_seconds, 30"),
        ({"scale_down_seconds": -1}, "scale_down_seconds is -1"),
        ({"up_rate": 1}, "up_rate is 1; set it to above 1, or nothing ever grows"),
        ({"down_rate": 1}, "down_rate is 1; set it to above 1, or nothing ever shrinks"),
        ({"max_starting": 0}, "max_starting is 0; set it to at least 1, or None"),
        ({"drain_seconds": 0}, "drain_seconds is 0"),
        ({"request_timeout": 0}, "request_timeout is 0"),
        ({"panic_threshold": 1}, "panic_threshold is 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong, text):
    with pytest.raises(ValueError) as refused:
        Settings(**wrong)
    assert text in str(refused.value)


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"arrivals": -1}, {"busy_seconds": float("nan")}, {"in_flight": float("inf")}])
def test_a_sample_with_an_impossible_figure_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} of a sample is .*leave such a sample out"):
        Sample(**wrong)


# ---- Knative's vectors: (ready, mean over 60 s, mean over 6 s) → what is asked for


def by_knative(settings, rows):
    """What each row asks for, given (seconds, ready, slow, fast), with the memory of the rows before it."""
    state, asked = settled(), []
    slow_seconds, fast_seconds = settings.slow_seconds, settings.fast_seconds
    for now, ready, slow, fast in rows:
        # an older sample that makes the mean over the slow window what the row says
        rest = slow_seconds - fast_seconds
        older = Sample(seconds=rest, in_flight=(slow * slow_seconds - fast * fast_seconds) / rest)
        state = replace(state, samples=((now - fast_seconds, older),))
        decision, state = decide(settings, state, Observation(ready, sample=Sample(seconds=fast_seconds, in_flight=fast)), now)
        asked.append(decision.asked)
    return asked


TEN = knative(Metric.CONCURRENCY, 10, utilization=1.0, up_rate=10.0, down_rate=10.0, max_replicas=2000)
ONE = replace(TEN, target=1)


@pytest.mark.parametrize(
    ("settings", "rows", "asked"),
    [
        pytest.param(TEN, [(1, 1, 50, 10)], [5], id="the slow window"),
        pytest.param(TEN, [(1, 1, 100, 10)], [10], id="the slow window, more"),
        pytest.param(TEN, [(1, 8, 100, 100), (2, 8, 50, 50)], [10, 5], id="up and down"),
        pytest.param(TEN, [(1, 1, 1000, 1001), (2, 10, 1000, 1001)], [10, 100], id="tenfold steps up"),
        pytest.param(TEN, [(1, 100, 1, 1), (2, 10, 1, 1)], [10, 1], id="tenfold steps down"),
        pytest.param(TEN, [(1, 10, 100, 1000), (31, 10, 1, 1), (62, 10, 1, 1)], [100, 100, 1], id="panic lasts one slow window"),
        pytest.param(TEN, [(1, 1, 0, 0)], [0], id="nothing at one"),
        pytest.param(TEN, [(1, 5, 0, 0)], [0], id="nothing at five"),
        pytest.param(TEN, [(1, 0, 1000, 888)], [10], id="no replica counts as one"),
        pytest.param(TEN, [(1, 1, 50, 100)], [10], id="panic doubles at once"),
        pytest.param(
            ONE,
            [(1, 1, 6, 6), (2, 6, 36, 36), (3, 36, 216, 216), (4, 216, 1296, 1296), (5, 1296, 1296, 1296), (6, 1296, 6, 6)],
            [6, 36, 216, 1296, 1296, 1296],
            id="exponential growth, and no way back in panic",
        ),
        pytest.param(
            ONE, [(1, 10, 11, 25), (31, 40, 30, 41), (63, 55, 50, 56)], [25, 41, 50], id="panic ends though the load grows slowly"
        ),
        pytest.param(
            ONE,
            [(1, 10, 11, 25), (31, 40, 30, 80), (63, 80, 50, 56), (90, 80, 50, 56), (92, 80, 50, 56)],
            [25, 80, 80, 80, 50],
            id="panic starts anew",
        ),
        pytest.param(replace(ONE, up_rate=1.1), [(1, 2, 3, 3.1)], [3], id="small steps up"),
        pytest.param(replace(TEN, down_rate=1.1), [(1, 100, 1, 1)], [90], id="small steps down"),
    ],
)
def test_concurrency_is_decided_as_knative_does(settings, rows, asked):
    assert by_knative(settings, rows) == asked


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        pytest.param({2: 40}, {2: 4, 300: 4, 302: 1}, id="five minutes"),
        pytest.param({540: 40, 600: 30}, {540: 4, 600: 4, 660: 4, 838: 4, 840: 3, 898: 3, 900: 1}, id="gradually"),
    ],
)
def test_the_scale_down_delay_is_decided_as_knative_does(figures, expected):
    """Knative goes to zero at the end, which is not given here: one is left."""
    settings = replace(TEN, scale_down_seconds=300.0, panic_threshold=100.0, slow_seconds=2.0, fast_seconds=2.0)
    state, seen = settled(), {}
    for now in range(2, 902, 2):
        sample = Sample(seconds=2.0, in_flight=figures.get(now, 0))
        decision, state = decide(settings, state, Observation(1, sample=sample), now)
        seen[now] = decision.replicas
    assert {now: seen[now] for now in expected} == expected


def test_no_data_is_no_decision_for_knative_either():
    decision, _ = decide(TEN, settled(3), Observation(3), 1.0)
    assert (decision.replicas, decision.asked) == (3, None)


def test_a_restart_with_knatives_rules_keeps_what_is_there():
    decision, _ = decide(replace(TEN, target=100), State(), Observation(2, sample=Sample(seconds=2, in_flight=10)), 1000.0)
    assert decision.replicas == 2


# ---- what holds whatever is seen

figure = st.floats(0, 1e4)
count = st.integers(0, 10_000)
samples = st.builds(Sample, st.floats(0.5, 5), count, count, figure, count, figure)
observations = st.builds(Observation, st.integers(0, 30), st.integers(0, 30), st.none() | samples, st.none() | st.integers(0, 30))
runs = st.lists(st.tuples(st.floats(0, 100), observations), max_size=20)
all_settings = st.builds(
    Settings,
    st.integers(1, 5),
    st.integers(5, 30),
    st.sampled_from(Metric),
    st.floats(0.1, 100),
    scale_down_seconds=st.floats(0, 100),
    max_starting=st.none() | st.integers(1, 5),
)


@given(all_settings, runs)
def test_whatever_is_seen_the_bounds_hold_and_nothing_is_forgotten_too_soon(settings, run):
    state, now = State(), 0.0
    for passed, observation in run:
        now += passed
        before = state
        decision, state = decide(settings, state, observation, now)
        startable = observation.ready + max(observation.starting, settings.max_starting or 1000)
        assert min(settings.min_replicas, startable) <= decision.replicas <= min(settings.max_replicas, startable)
        if decision.asked is None and before.replicas is not None and state.since < now:
            assert decision.replicas == min(max(before.replicas, settings.min_replicas), settings.max_replicas, startable)
        if now - state.since < settings.slow_seconds:
            assert decision.replicas >= min(state.found, settings.max_replicas, startable)
        assert all(at > now - settings.slow_seconds for at, _ in state.samples)
        assert decide(settings, before, observation, now) == (decision, state)
