"""How many replicas a revision wants: a function of its settings, of what was observed and of the time.

What may live in here: the arithmetic of one decision.  No I/O, no clock, no randomness and no platform: time and figures
are arguments, what has to be remembered is a frozen `State` that is passed in and returned.  docs/autoscaling.md explains
the formulas and where they come from.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

# a quotient like 2.1 / 0.7 is 3.0000000000000004 in floats, and is not meant to ask for a fourth replica
_ROUNDING = 1e-9
# 95 % confidence, a margin of 5 and a variance of 100: how many of many replicas tell enough about all
_SAMPLE_SCALE = 1.96**2 * 100 / 25
_DRAIN_SECONDS = (1.0, 5.0)


class Metric(StrEnum):
    """What replicas are counted by.  All but WORK are decided as Knative's pod autoscaler does."""

    WORK = "work"
    CONCURRENCY = "concurrency"
    RPS = "rps"
    CPU = "cpu"


@dataclass(frozen=True)
class Settings:
    """What the scaler of one revision is told; ValueError where the figures contradict each other."""

    min_replicas: int = 1
    max_replicas: int = 1
    # wanted at first, until as many have been ready once; None: min_replicas
    initial_replicas: int | None = None
    metric: Metric = Metric.WORK
    # what one replica takes when it is full: slots (work, concurrency), requests per second (rps), cores (cpu)
    target: float = 1.0
    # the part of `target` that is planned with; the rest is for chance
    utilization: float = 0.7
    slow_seconds: float = 30.0
    fast_seconds: float = 4.0
    # Knative's metrics only: panic starts where the fast window asks for this many times the ready replicas
    panic_threshold: float = 2.0
    # one step goes to at most `up_rate` times and to at least 1/`down_rate` of what is there
    up_rate: float = 10.0
    down_rate: float = 2.0
    # work only: a demand this near to what the present size is planned for changes nothing
    tolerance: float = 0.1
    # a smaller size has to be enough for this long before it is taken
    scale_down_seconds: float = 60.0
    # work only: a backlog is to be gone after this long; None: from the start-up time
    drain_seconds: float | None = None
    request_timeout: float = 60.0
    # replicas that may be starting at once; None: any number
    max_starting: int | None = None

    def __post_init__(self) -> None:
        initial = self.min_replicas if self.initial_replicas is None else self.initial_replicas
        rules = (
            ("min_replicas", self.min_replicas, self.min_replicas >= 1, "at least 1: nothing holds requests at zero replicas"),
            ("max_replicas", self.max_replicas, self.max_replicas >= self.min_replicas, "no less than min_replicas"),
            ("initial_replicas", initial, initial >= 1, "at least 1"),
            ("target", self.target, 0 < self.target < math.inf, "above 0: what one replica takes"),
            ("utilization", self.utilization, 0 < self.utilization <= 1, "above 0 and at most 1"),
            ("fast_seconds", self.fast_seconds, 0 < self.fast_seconds <= self.slow_seconds, "above 0, at most slow_seconds"),
            ("slow_seconds", self.slow_seconds, self.slow_seconds < math.inf, "a number of seconds"),
            ("panic_threshold", self.panic_threshold, self.panic_threshold > 1, "above 1"),
            ("up_rate", self.up_rate, 1 < self.up_rate < math.inf, "above 1, or nothing ever grows"),
            ("down_rate", self.down_rate, 1 < self.down_rate < math.inf, "above 1, or nothing ever shrinks"),
            ("tolerance", self.tolerance, 0 <= self.tolerance < 1, "from 0 up to 1"),
            ("scale_down_seconds", self.scale_down_seconds, 0 <= self.scale_down_seconds < math.inf, "0 or more"),
            ("drain_seconds", self.drain_seconds, self.drain_seconds is None or self.drain_seconds > 0, "above 0, or None"),
            ("request_timeout", self.request_timeout, self.request_timeout > 0, "above 0"),
            ("max_starting", self.max_starting, self.max_starting is None or self.max_starting >= 1, "at least 1, or None"),
        )
        for name, found, fits, wanted in rules:
            if not fits:
                raise ValueError(f"autoscaler: {name} is {found}; set it to {wanted}")

    @property
    def per_replica(self) -> float:
        return max(0.01, self.target * self.utilization)


def knative(metric: Metric, target: float, **others: Any) -> Settings:
    """Settings under which the decisions are those of Knative's pod autoscaler with its own defaults."""
    defaults = {"slow_seconds": 60.0, "fast_seconds": 6.0, "up_rate": 1000.0, "tolerance": 0.0, "scale_down_seconds": 0.0}
    return Settings(metric=metric, target=target, **(defaults | others))


@dataclass(frozen=True)
class Sample:
    """What was counted over the `seconds` up to `at`, for all replicas together."""

    at: float
    seconds: float = 1.0
    arrivals: float = 0.0
    finished: float = 0.0
    # slot-seconds that the finished requests took, without their time in a queue
    busy_seconds: float = 0.0
    # requests in a queue at the end, wherever it is
    waiting: float = 0.0
    # mean of the requests taken in and not yet answered, those waiting included
    in_flight: float = 0.0
    cpu_seconds: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.arrivals, self.finished, self.busy_seconds, self.waiting, self.in_flight, self.cpu_seconds)
        if not (math.isfinite(self.at) and 0 < self.seconds < math.inf and all(0 <= c < math.inf for c in counts)):
            raise ValueError(f"{self} has a figure that is negative, infinite or not a number; leave such a sample out")


@dataclass(frozen=True)
class Observation:
    """What is seen of a revision: its replicas, and the samples that are new since the last decision."""

    ready: int
    starting: int = 0
    # how many of the ready ones the samples tell of; None: all
    reporting: int | None = None
    # from a replica's start to its readiness, as measured
    startup_seconds: float = 0.0
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class State:
    """What one decision leaves to the next.  A new one means a restart: nothing shrinks until the slow window is full."""

    samples: tuple[Sample, ...] = ()
    # the last known mean of busy seconds per request
    service_seconds: float | None = None
    # when which size was asked for, as long as it may still hold a smaller one off
    asks: tuple[tuple[float, int], ...] = ()
    # what the last decision wanted
    replicas: int | None = None
    # when the first decision was made, and how many replicas it found
    since: float | None = None
    found: int = 0
    initial_reached: bool = False
    # panic ends a whole slow window after `panic_at`, and until then nothing is below `panic_peak`
    panic_at: float | None = None
    panic_peak: int = 0


@dataclass(frozen=True)
class Decision:
    """`asked` is what the figures ask for, before starts and bounds limit it; None: they allow no decision."""

    replicas: int
    asked: int | None
    why: str


def decide(settings: Settings, state: State, observation: Observation, now: float) -> tuple[Decision, State]:
    """The number of replicas to have from now on, why, and the state for the next decision.  `now` never goes back."""
    state = _remember(settings, state, observation, now)
    problem = _problem(settings, state, observation, now)
    if problem is not None:
        return _keep(settings, state, observation, now, problem)
    if settings.metric is Metric.WORK:
        asked, load = _by_work(settings, state, observation, now)
    else:
        asked, load, state = _by_knative(settings, state, observation, now)
    texts = [load]
    size, state = _delay(settings, state, asked, now, texts)
    if settings.metric is Metric.WORK:
        size = _after_restart(settings, state, size, now, texts)
        size = _rates(settings, observation.ready + observation.starting, size, texts)
    asked = size
    size = _bound(settings, state, _starts(settings, observation, size, texts), texts)
    return Decision(size, asked, f"{_replicas(size)}: {'; '.join(texts)}"), replace(state, replicas=size)


def needed_reports(ready: int) -> int:
    """How many of the ready replicas have to tell their figures before these count for all."""
    return ready if ready <= 3 else math.ceil(ready * _SAMPLE_SCALE / (ready + _SAMPLE_SCALE - 1))


def _remember(settings: Settings, state: State, observation: Observation, now: float) -> State:
    known = {sample.at: sample for sample in (*state.samples, *observation.samples)}
    samples = _within([known[at] for at in sorted(known)], settings.slow_seconds, now)
    finished = sum(sample.finished for sample in samples)
    busy = math.fsum(sample.busy_seconds for sample in samples)
    state = replace(state, samples=samples, service_seconds=busy / finished if finished else state.service_seconds)
    if state.since is None:
        # what went before is lost; Knative's way to shrink nothing for want of it is to start in panic
        panics = settings.metric is not Metric.WORK and observation.ready > 1
        size = observation.ready + observation.starting
        state = replace(state, since=now, found=size, panic_at=now if panics else None, panic_peak=size if panics else 0)
    reached = state.initial_reached or observation.ready >= _initial(settings)
    return replace(state, initial_reached=reached)


def _initial(settings: Settings) -> int:
    return min(settings.initial_replicas or settings.min_replicas, settings.max_replicas)


def _within(samples: Iterable[Sample], seconds: float, now: float) -> tuple[Sample, ...]:
    """The samples of a window; one belongs to it by its end, and one from the future to none."""
    return tuple(sample for sample in samples if now - seconds < sample.at <= now)


def _rate(samples: tuple[Sample, ...], total: Callable[[Sample], float]) -> float:
    """A total per second over the time that was observed: a gap is unknown, and unknown is not zero."""
    return math.fsum(total(sample) for sample in samples) / math.fsum(sample.seconds for sample in samples)


def _problem(settings: Settings, state: State, observation: Observation, now: float) -> str | None:
    """Why the figures allow no decision, or None."""
    if not state.samples:
        return f"no figures of the last {settings.slow_seconds:g} s"
    if not _within(state.samples, settings.fast_seconds, now):
        return f"the newest figures are {now - state.samples[-1].at:.0f} s old"
    reporting = observation.ready if observation.reporting is None else observation.reporting
    if reporting < needed_reports(observation.ready):
        return f"only {reporting} of {observation.ready} ready replicas tell their figures"
    if settings.metric is Metric.WORK and state.service_seconds is None:
        waiting = state.samples[-1].waiting
        if observation.ready == 0 and waiting:
            return f"no replica has been ready yet, {_requests(waiting)} waiting"
        if not waiting and any(sample.arrivals or sample.in_flight for sample in state.samples):
            return "no request has finished yet, and none waits"
    return None


def _keep(settings: Settings, state: State, observation: Observation, now: float, problem: str) -> tuple[Decision, State]:
    """No decision: what was wanted stays wanted.  It counts as asked for, so that the next figures don't shrink it at once."""
    texts: list[str] = []
    size = observation.ready + observation.starting if state.replicas is None else state.replicas
    state = replace(state, asks=_asks(settings, state, size, now))
    size = _bound(settings, state, size, texts)
    return Decision(size, None, "; ".join([f"{_replicas(size)}, unchanged: {problem}", *texts])), replace(state, replicas=size)


def _by_work(settings: Settings, state: State, observation: Observation, now: float) -> tuple[int, str]:
    """Offered work (arrivals × service time, in busy slots) and what it takes to drain the queue, over a replica's share."""
    newest, service = state.samples[-1], state.service_seconds
    slow, fast = state.samples, _within(state.samples, settings.fast_seconds, now)
    if service is None:
        demand = max(_rate(window, lambda s: s.in_flight * s.seconds) for window in (slow, fast))
        text = f"no request has finished yet, {demand:.1f} in flight"
    else:
        rate = max(_rate(window, lambda s: s.arrivals) for window in (slow, fast))
        drain = newest.waiting * service / drain_seconds(settings, observation.startup_seconds)
        demand = rate * service + drain
        text = f"{rate:.1f} requests/s × {_milliseconds(service)} keep {rate * service:.2f} slots busy"
        if newest.waiting:
            text += f" and {_requests(newest.waiting)} waiting ask for {drain:.2f} more"
    current = observation.ready + observation.starting if state.replicas is None else state.replicas
    size = max(1 if newest.waiting else 0, _with_tolerance(demand / settings.per_replica, current, settings.tolerance))
    return size, f"{text}, {settings.per_replica:.3g} per replica"


def drain_seconds(settings: Settings, startup_seconds: float) -> float:
    """How soon a backlog is to be gone.

    A replica that is ordered for a backlog is of use only when it is up, so the goal grows with the start-up time: a
    queue that will be gone before then is no reason to start one.  It never takes more than a quarter of what a request may last.
    """
    least, most = _DRAIN_SECONDS
    goal = min(most, max(least, startup_seconds / 4)) if settings.drain_seconds is None else settings.drain_seconds
    return min(goal, settings.request_timeout / 4)


def _with_tolerance(wanted: float, current: int, tolerance: float) -> int:
    """`wanted` replicas as a whole number, or `current` where the difference is within the tolerance."""
    if _ceil(wanted / (1 + tolerance)) <= current <= _ceil(wanted / (1 - tolerance)):
        return current
    return _ceil(wanted)


def _by_knative(settings: Settings, state: State, observation: Observation, now: float) -> tuple[int, str, State]:
    """The means of both windows over a replica's share, with panic: it starts at a burst, and in it nothing shrinks."""
    total = _TOTALS[settings.metric]
    slow = _rate(state.samples, total)
    fast = _rate(_within(state.samples, settings.fast_seconds, now), total)
    ready = max(1, observation.ready)
    least, most = math.floor(ready / settings.down_rate), math.ceil(settings.up_rate * ready)
    by_slow, by_fast = (_ceil(mean / settings.per_replica) for mean in (slow, fast))
    if by_fast / ready >= settings.panic_threshold:
        state = replace(state, panic_at=now)
    elif state.panic_at is not None and now > state.panic_at + settings.slow_seconds:
        state = replace(state, panic_at=None, panic_peak=0)
    size = max(least, min(by_slow, most))
    text = f"{settings.metric} {slow:.2f} over {settings.slow_seconds:g} s and {fast:.2f} over {settings.fast_seconds:g} s"
    text += f", {settings.per_replica:.3g} per replica"
    if state.panic_at is not None:
        size = max(size, max(least, min(by_fast, most)), state.panic_peak)
        text += f"; in panic, nothing shrinks for {state.panic_at + settings.slow_seconds - now:.0f} s"
        state = replace(state, panic_peak=size)
    return size, text, state


_TOTALS: dict[Metric, Callable[[Sample], float]] = {
    Metric.CONCURRENCY: lambda sample: sample.in_flight * sample.seconds,
    Metric.RPS: lambda sample: sample.arrivals,
    Metric.CPU: lambda sample: sample.cpu_seconds,
}


def _asks(settings: Settings, state: State, size: int, now: float) -> tuple[tuple[float, int], ...]:
    """The asks that may still hold a smaller one off: those young enough and larger than any that came after."""
    young = [(at, asked) for at, asked in state.asks if at > now - settings.scale_down_seconds and asked > size]
    return (*young, (now, size))


def _delay(settings: Settings, state: State, asked: int, now: float, texts: list[str]) -> tuple[int, State]:
    """The largest size asked for during the scale-down delay."""
    asks = _asks(settings, state, asked, now)
    at, size = asks[0]
    if size > asked:
        texts.append(f"{asked} would do, {size} stay for {at + settings.scale_down_seconds - now:.0f} s more (scale-down delay)")
    return size, replace(state, asks=asks)


def _after_restart(settings: Settings, state: State, size: int, now: float, texts: list[str]) -> int:
    until = (now if state.since is None else state.since) + settings.slow_seconds
    if now >= until or size >= state.found:
        return size
    texts.append(f"the {state.found} found at the start stay for {until - now:.0f} s more")
    return state.found


def _rates(settings: Settings, present: int, size: int, texts: list[str]) -> int:
    least, most = math.floor(present / settings.down_rate), math.ceil(settings.up_rate * max(1, present))
    if least <= size <= most:
        return size
    texts.append(f"{size} wanted, from {present} in steps")
    return max(least, min(size, most))


def _starts(settings: Settings, observation: Observation, size: int, texts: list[str]) -> int:
    if settings.max_starting is None:
        return size
    most = observation.ready + max(observation.starting, settings.max_starting)
    if size <= most:
        return size
    texts.append(f"{size} wanted, at most {settings.max_starting} start at once")
    return most


def _bound(settings: Settings, state: State, size: int, texts: list[str]) -> int:
    least, name = settings.min_replicas, "minReplicas"
    if not state.initial_reached and _initial(settings) > least:
        least, name = _initial(settings), "initial replicas"
    if size < least:
        texts.append(f"at least {least} ({name})")
    if size > settings.max_replicas:
        texts.append(f"{size} wanted, at most {settings.max_replicas} (maxReplicas)")
    return min(max(size, least), settings.max_replicas)


def _ceil(quotient: float) -> int:
    return math.ceil(quotient - _ROUNDING)


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _requests(count: float) -> str:
    return f"{count:g} request" if count == 1 else f"{count:g} requests"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
