"""Who gets which share of the requests, step by step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.observed import History
from deployer.rollout import Ask, Candidate, step

NEW, ONE = History(), History(created="r1", ready="r1", rolled_out="r1")
TWO = History(created="r2", ready="r2", rolled_out="r2", previous="r1")

# what happens: the ask, what has been, what is ready, what is routed now → traffic, what is kept, rolled out
STEPS = [
    ("the first revision is on its way", Ask("r1"), NEW, "", {}, {}, "r1", ""),
    ("the first revision is ready", Ask("r1"), NEW, "r1", {}, {"r1": 100}, "r1", "r1"),
    ("a canary of a service that is not there yet gets all", Ask("r1", 20), NEW, "r1", {}, {"r1": 100}, "r1", "r1"),
    ("nothing changes", Ask("r1"), ONE, "r1", {"r1": 100}, {"r1": 100}, "r1", "r1"),
    ("the only one crashes: it keeps its share", Ask("r1"), ONE, "", {"r1": 100}, {"r1": 100}, "r1", "r1"),
    ("an update is on its way", Ask("r2"), ONE, "r1", {"r1": 100}, {"r1": 100, "r2": 0}, "r1 r2", "r1"),
    ("an update is ready", Ask("r2"), ONE, "r1 r2", {"r1": 100}, {"r2": 100}, "r2", "r2"),
    ("an update whose model is not there yet", Ask(""), ONE, "r1", {"r1": 100}, {"r1": 100}, "r1", "r1"),
    ("a candidate is on its way", Ask("r2", 20), ONE, "r1", {"r1": 100}, {"r1": 100, "r2": 0}, "r1 r2", "r1"),
    ("a candidate is ready", Ask("r2", 20), ONE, "r1 r2", {"r1": 100}, {"r1": 80, "r2": 20}, "r1 r2", "r1"),
    ("a candidate dies: the stable one takes all", Ask("r2", 20), ONE, "r1", {"r1": 80, "r2": 20}, {"r1": 100, "r2": 0}, "r1 r2", "r1"),
    ("a candidate at nothing goes on running", Ask("r2", 0), ONE, "r1 r2", {"r1": 100}, {"r1": 100, "r2": 0}, "r1 r2", "r1"),
    ("promoted, and too small yet for all: it keeps what it has", Ask("r2"), ONE, "r1", {"r1": 80, "r2": 20}, {"r1": 80, "r2": 20}, "r1 r2", "r1"),
    ("promoted, and large enough", Ask("r2"), ONE, "r1 r2", {"r1": 80, "r2": 20}, {"r2": 100}, "r2", "r2"),
    ("the candidate is given up", Ask("r1"), ONE, "r1 r2", {"r1": 80, "r2": 20}, {"r1": 100}, "r1", "r1"),
    ("back to the one before, which has to start", Ask("r1"), TWO, "r2", {"r2": 100}, {"r2": 100, "r1": 0}, "r2 r1", "r2"),
    ("back to the one before, which is ready", Ask("r1"), TWO, "r1 r2", {"r2": 100}, {"r1": 100}, "r1", "r1"),
    ("0 % for what has all: the one before starts", Ask("r2", 0), TWO, "r2", {"r2": 100}, {"r1": 0, "r2": 100}, "r1 r2", "r2"),
    ("0 % for what has all: the one before is ready", Ask("r2", 0), TWO, "r1 r2", {"r2": 100}, {"r1": 100, "r2": 0}, "r1 r2", "r2"),
    (
        "two canaries of spec.canary, one of them ready",
        Ask("r1", None, (Candidate("a", "r2", 10), Candidate("b", "r3", 30))),
        ONE, "r1 r2", {"r1": 100}, {"r1": 90, "r2": 10, "r3": 0}, "r1 r2 r3", "r1",
    ),
    (
        "both are ready",
        Ask("r1", None, (Candidate("a", "r2", 10), Candidate("b", "r3", 30))),
        ONE, "r1 r2 r3", {"r1": 100}, {"r1": 60, "r2": 10, "r3": 30}, "r1 r2 r3", "r1",
    ),
    (
        "a canary becomes the stable one: the same revision, and it serves on",
        Ask("r2"), ONE, "r1 r2", {"r1": 90, "r2": 10}, {"r2": 100}, "r2", "r2",
    ),
    (
        "one of two canaries is promoted, and too small yet for more: it keeps what it has",
        Ask("r2", None, (Candidate("b", "r3", 30),)),
        ONE, "r1 r3", {"r1": 60, "r2": 10, "r3": 30}, {"r1": 60, "r2": 10, "r3": 30}, "r1 r2 r3", "r1",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ask", "history", "ready", "weights", "traffic", "keep", "rolled_out"), [s[1:] for s in STEPS], ids=[s[0] for s in STEPS]
)
def test_a_step(ask, history, ready, weights, traffic, keep, rolled_out):
    made = step(ask, history, frozenset(ready.split()), weights, frozenset(ready.split()))
    assert dict(made.traffic) == traffic
    assert made.keep == tuple(keep.split())
    assert made.history.rolled_out == rolled_out


REVISIONS = ("r1", "r2", "r3")
HISTORIES = st.builds(History, *[st.sampled_from(("", *REVISIONS))] * 4).filter(lambda h: not h.previous or h.rolled_out)
ASKS = st.builds(Ask, st.sampled_from(("", *REVISIONS)), st.none() | st.integers(0, 100), st.just(()))
READY = st.frozensets(st.sampled_from(REVISIONS))


@given(ASKS, HISTORIES, READY, READY)
def test_shares_sum_up_go_to_what_runs_and_stay_where_nothing_changes(ask, history, ready, later):
    first = step(ask, history, ready, {}, ready)
    assert sum(percent for _, percent in first.traffic) in (0, 100)
    assert {name for name, _ in first.traffic} <= set(first.keep)
    again = step(ask, first.history, ready, dict(first.traffic), ready)
    assert step(ask, again.history, ready, dict(again.traffic), ready) == again
    for name, percent in step(ask, again.history, later, dict(again.traffic), later).traffic:
        # what is not ready may keep a share, and never gets one
        assert name in later or percent <= max(
            dict(again.traffic).get(name, 0), 100 * (name in (history.rolled_out, history.previous))
        )


@pytest.mark.parametrize(
    ("percent", "alive", "traffic"),
    [
        (None, "r1 r2", {"r1": 80, "r2": 20}),
        (None, "r2", {"r1": 0, "r2": 100}),
        (None, "", {"r1": 80, "r2": 20}),
        (20, "r2", {"r1": 100, "r2": 0}),
    ],
    ids=["both answer", "the stable one dies while it is replaced", "both die", "a candidate nobody promoted is not the way out"],
)
def test_what_is_being_replaced_may_die(percent, alive, traffic):
    """r2 is smaller than it has to be for all requests."""
    made = step(Ask("r2", percent), ONE, frozenset(), {"r1": 80, "r2": 20}, frozenset(alive.split()))
    assert dict(made.traffic) == traffic
    assert made.history.rolled_out == "r1"


CANARIES = st.lists(st.tuples(st.sampled_from(("", *REVISIONS, "c1", "c2")), st.integers(0, 50)), max_size=2).map(
    lambda found: tuple(Candidate(f"c{n}", revision, percent) for n, (revision, percent) in enumerate(found))
)
EVERYTHING = st.frozensets(st.sampled_from((*REVISIONS, "c1", "c2")))


@given(st.sampled_from(("", *REVISIONS)), CANARIES, HISTORIES, EVERYTHING, EVERYTHING, st.integers(0, 100))
def test_shares_sum_up_also_while_a_service_with_canaries_is_rolled_out(latest, canaries, history, ready, alive, share):
    weights = {history.rolled_out or "r3": 100 - share, latest or "r2": share}
    if len(weights) == 1:
        weights = dict.fromkeys(weights, 100)
    made = step(Ask(latest, None, canaries), history, ready, weights, ready | alive)
    assert sum(percent for _, percent in made.traffic) in (0, 100)
    assert all(percent >= 0 for _, percent in made.traffic)
    assert {name for name, _ in made.traffic} <= set(made.keep)
