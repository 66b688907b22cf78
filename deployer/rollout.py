"""Which revision gets which share of the requests now: one step from what is asked and what is ready.

Pure, and level-triggered: the same arguments give the same step, and a step's own outcome as the next one's arguments
changes nothing more.  Three rules hold in every step: a revision that isn't ready gets no share it did not have, the
revision that served last is kept until its successor is ready, and what is not asked for any more is let go of last.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from deployer.observed import History


@dataclass(frozen=True)
class Candidate:
    """An entry of `spec.canary`: its revision ("" while its model is not there) and its share in percent."""

    name: str
    revision: str
    percent: int


@dataclass(frozen=True)
class Ask:
    """What the spec says: `latest` is the revision of `spec.predictor`, "" while it can't be named yet."""

    latest: str
    percent: int | None = None
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Step:
    traffic: tuple[tuple[str, int], ...]
    """Revision and percent, the stable one first; sums to 100 unless nothing is ready to serve."""
    keep: tuple[str, ...]
    """Revisions that must run."""
    history: History


def step(ask: Ask, history: History, ready: Collection[str], weights: Mapping[str, int], alive: Collection[str]) -> Step:
    """`ready` has the revisions that could take their whole share, `alive` those that answer at all; `weights` is what is
    routed now, in percent.
    """
    main = _main(ask, history, ready, weights, alive)
    shares = [(c.revision, c.percent if c.revision in ready else 0) for c in ask.candidates if c.revision]
    if not shares or not main.traffic:
        return main
    rest = 100 - sum(percent for _, percent in shares)
    (stable, _), *others = main.traffic
    # of what the candidates leave, the revision that is being rolled out has what it had, and the stable one what remains
    coming = [(name, min(percent, rest)) for name, percent in others]
    traffic: dict[str, int] = {}
    for name, percent in [(stable, rest - sum(percent for _, percent in coming)), *coming, *shares]:
        traffic[name] = traffic.get(name, 0) + percent
    keep = tuple(dict.fromkeys([*main.keep, *(name for name, _ in shares)]))
    return Step(tuple(traffic.items()), keep, main.history)


def _main(ask: Ask, history: History, ready: Collection[str], weights: Mapping[str, int], alive: Collection[str]) -> Step:
    latest, stable = ask.latest, history.rolled_out
    if not latest:
        return Step(((stable, 100),) if stable else (), (stable,) if stable else (), history)
    history = replace(history, created=latest, ready=latest if latest in ready else history.ready)
    percent = 100 if ask.percent is None else ask.percent
    if percent < 100 and latest == stable and history.previous:
        # asked for less than all of what has all already: the one before takes the rest
        stable = history.previous
    if stable in ("", latest):
        if latest not in ready and history.rolled_out != latest:
            return Step((), (latest,), history)
        return Step(((latest, 100),), (latest,), replace(history, rolled_out=latest))
    if percent == 100 and latest in ready:
        return Step(((latest, 100),), (latest,), replace(history, rolled_out=latest, previous=stable))
    share = percent if latest in ready else 0
    if percent == 100:
        # on the way to all of it: what it has now, until it is large enough for the rest
        share = weights.get(latest, 0)
        if latest in alive and stable not in alive:
            # what it replaces has died: rather too few that answer than none
            share = 100
    if stable != history.rolled_out and stable not in ready:
        share = 100 - weights.get(stable, 0)
    return Step(((stable, 100 - share), (latest, share)), (stable, latest), history)
