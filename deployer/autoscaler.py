"""How many replicas a revision wants: a function of its settings, of what was counted and of the time.

What may live in here: the arithmetic of one decision.  No I/O, no clock, no randomness and no platform: time and figures
are arguments, and what has to be remembered is a frozen `State` that is passed in and handed back.  The formulas and what
they are worth are in docs/autoscaling.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

# 2.1 / 0.7 is 3.0000000000000004 in floats, and is not meant to ask for a fourth replica
_ROUNDING = 1e-9
# so many standard deviations above the mean are put down to chance
_DEVIATIONS = 2.0
_LEAST_PER_REPLICA = 0.01
# 95 % confidence, a margin of 5 and a variance of 100: how many of many replicas tell enough about all
_SAMPLE_SCALE = 1.96**2 * 100 / 25


class Metric(StrEnum):
    """What replicas are counted by.  CONCURRENCY and RPS are decided as Knative's pod autoscaler does."""

    WORK = "work"
    CONCURRENCY = "concurrency"
    RPS = "rps"


@dataclass(frozen=True)
class Settings:
    """What the scaler of one revision is told; ValueError where the figures contradict each other.  Times are in seconds."""

    min_replicas: int = 1
    max_replicas: int = 1
    metric: Metric = Metric.WORK
    # what one replica takes when it is full: slots (work), requests at once (concurrency), requests per second (rps)
    target: float = 1.0
    # the part of `target` that is planned with; the rest is for chance
    utilization: float = 0.7
    slow_seconds: float = 30.0
    # work: a burst may be as short as one sample and is looked for over so long; else: the window that starts panic
    fast_seconds: float = 4.0
    # a smaller size has to be enough for this long before it is taken
    scale_down_seconds: float = 60.0
    # one step goes to at most `up_rate` times and to at least 1/`down_rate` of what is there
    up_rate: float = 10.0
    down_rate: float = 2.0
    # replicas that may be starting at once; None: any number
    max_starting: int | None = None
    # work only: a backlog is to be gone after this long, and after a quarter of what a request may last
    drain_seconds: float = 2.0
    request_timeout: float = 60.0
    # concurrency and rps only: panic starts where the fast window asks for this many times the ready replicas
    panic_threshold: float = 2.0

    def __post_init__(self) -> None:
        rules = (
            ("min_replicas", self.min_replicas >= 1, "at least 1: nothing holds requests at zero replicas"),
            ("max_replicas", self.max_replicas >= self.min_replicas, f"at least min_replicas, {self.min_replicas}"),
            ("target", 0 < self.target < math.inf, "what one replica takes, above 0"),
            ("utilization", 0 < self.utilization <= 1, "above 0 and at most 1"),
            ("slow_seconds", 0 < self.slow_seconds < math.inf, "above 0"),
            ("fast_seconds", 0 < self.fast_seconds <= self.slow_seconds, f"above 0, at most slow_seconds, {self.slow_seconds:g}"),
            ("scale_down_seconds", 0 <= self.scale_down_seconds < math.inf, "0 or more"),
            ("up_rate", 1 < self.up_rate < math.inf, "above 1, or nothing ever grows"),
            ("down_rate", 1 < self.down_rate < math.inf, "above 1, or nothing ever shrinks"),
            ("max_starting", self.max_starting is None or self.max_starting >= 1, "at least 1, or None for any number"),
            ("drain_seconds", 0 < self.drain_seconds < math.inf, "above 0"),
            ("request_timeout", self.request_timeout > 0, "above 0"),
            ("panic_threshold", self.panic_threshold > 1, "above 1"),
        )
        for name, fits, wanted in rules:
            if not fits:
                raise ValueError(f"autoscaler: {name} is {getattr(self, name)}; set it to {wanted}")

    @property
    def per_replica(self) -> float:
        return max(_LEAST_PER_REPLICA, self.target * self.utilization)


def knative(metric: Metric, target: float, **others: Any) -> Settings:
    """Settings under which the decisions are those of Knative's pod autoscaler with its own defaults."""
    defaults = {"slow_seconds": 60.0, "fast_seconds": 6.0, "up_rate": 1000.0, "scale_down_seconds": 0.0}
    return Settings(metric=metric, target=target, **(defaults | others))


@dataclass(frozen=True)
class Sample:
    """What was counted over the last `seconds`, for all replicas together; ValueError for a figure that can't be.

    A figure that is not known makes no sample: leave it out rather than to put in a 0.
    """

    seconds: float = 1.0
    arrivals: float = 0.0
    finished: float = 0.0
    # how long slots were taken, without anybody's time in a queue; a batch is counted once
    busy_seconds: float = 0.0
    # requests in a queue at the end, wherever that is
    waiting: float = 0.0
    # requests taken in and not yet answered, those waiting included
    in_flight: float = 0.0

    def __post_init__(self) -> None:
        for name, found in ((field.name, getattr(self, field.name)) for field in fields(self)):
            if not 0 <= found < math.inf or (name == "seconds" and found == 0):
                raise ValueError(f"autoscaler: {name} of a sample is {found}, which can't be counted; leave such a sample out")


@dataclass(frozen=True)
class Observation:
    """What is seen of a revision at one moment."""

    ready: int
    # every other replica that is there and not being stopped: not ready yet, not ready any more, to be started again
    starting: int = 0
    # what was counted since the last observation; None: nothing is known
    sample: Sample | None = None
    # how many of the ready replicas the sample tells of, if not all
    reporting: int | None = None

    @property
    def present(self) -> int:
        return self.ready + self.starting


@dataclass(frozen=True)
class State:
    """What one decision leaves to the next.  A new one means a restart: nothing shrinks until the slow window is full."""

    # when which sample ended
    samples: tuple[tuple[float, Sample], ...] = ()
    # the last known mean of busy seconds per request
    service_seconds: float | None = None
    # when which size was asked for, as long as it may hold off a smaller one; the largest and oldest first
    asks: tuple[tuple[float, int], ...] = ()
    # what the last decision wanted, whether it could be started or not, and when that was
    replicas: int | None = None
    at: float = -math.inf
    # since when decisions were made without a break, and how many replicas there were then
    since: float = -math.inf
    found: int = 0
    # panic ends a whole slow window after `panic_at`, and until then nothing is below `panic_peak`
    panic_at: float | None = None
    panic_peak: int = 0


@dataclass(frozen=True)
class Decision:
    """`replicas` to have from now on.  `asked` is what the figures ask for by themselves; None: they allow no decision."""

    replicas: int
    asked: int | None
    why: str


def decide(settings: Settings, state: State, observation: Observation, now: float) -> tuple[Decision, State]:
    """How many replicas to have and why, and the state for the next decision.

    `now` is on a monotonic clock and the sample ends at it; ValueError if it goes back.
    """
    state = _remember(settings, state, observation, now)
    unknown = _unknown(settings, state, observation, now)
    asked: int | None
    limits: tuple[_Limit, ...]
    if unknown:
        asked, size, why, limits = None, _current(state, observation), f"unchanged, {unknown}", (_bounds,)
    else:
        asked, why, state = _BY_METRIC[settings.metric](settings, state, observation, now)
        size, limits = asked, (_delay, _after_restart, _steps, _bounds)
    # no figures count as figures that ask for what is there: the next ones shall not shrink it at once
    state = replace(state, asks=_asks(settings, state, size, now))
    reasons = [why]
    for limit in limits:
        size, why = limit(settings, state, observation, size, now)
        reasons.append(why)
    # what can't be started yet stays wanted
    state = replace(state, replicas=size)
    size, why = _starts(settings, observation, size)
    reasons.append(why)
    return Decision(size, asked, f"{_count(size, 'replica')}: {'; '.join(filter(None, reasons))}"), state


def _remember(settings: Settings, state: State, observation: Observation, now: float) -> State:
    if not (math.isfinite(now) and now >= state.at):
        raise ValueError(
            f"autoscaler: the time went from {state.at} to {now}; pass a clock that never goes back (time.monotonic)"
        )
    if now - state.at > settings.slow_seconds:
        # the first decision, or the first after a time when nobody counted (a stopped process): there is no history
        state = State(service_seconds=state.service_seconds, since=now, found=observation.present)
    new = () if observation.sample is None else ((now, observation.sample),)
    samples = tuple(one for one in (*state.samples, *new) if one[0] > now - settings.slow_seconds)
    finished = math.fsum(sample.finished for _, sample in samples)
    busy = math.fsum(sample.busy_seconds for _, sample in samples)
    return replace(state, at=now, samples=samples, service_seconds=busy / finished if finished else state.service_seconds)


def _current(state: State, observation: Observation) -> int:
    return observation.present if state.replicas is None else state.replicas


def _unknown(settings: Settings, state: State, observation: Observation, now: float) -> str:
    """Why the figures allow no decision; "" where they do."""
    ready, reporting = observation.ready, observation.reporting
    if not _window(state, settings.fast_seconds, now):
        return f"no figures for {settings.fast_seconds:g} s"
    if reporting is not None and reporting < _needed_reports(ready):
        return f"only {reporting} of {ready} ready replicas tell their figures"
    if settings.metric is Metric.WORK and state.service_seconds is None:
        waiting = state.samples[-1][1].waiting
        if waiting and ready == 0:
            return f"no replica has been ready yet, {_count(waiting, 'request')} waiting"
        if not waiting and any(sample.arrivals or sample.in_flight for _, sample in state.samples):
            return "no request has finished yet, and none waits"
    return ""


def _needed_reports(ready: int) -> int:
    """How many of the ready replicas have to tell their figures before these may stand for all."""
    return ready if ready <= 3 else math.ceil(ready * _SAMPLE_SCALE / (ready + _SAMPLE_SCALE - 1))


def _window(state: State, seconds: float, now: float) -> list[Sample]:
    return [sample for at, sample in state.samples if at > now - seconds]


def _rate(samples: list[Sample], total: Callable[[Sample], float]) -> float:
    """A total per second over the time that was counted: what is in a gap is unknown, and unknown is not zero."""
    return math.fsum(map(total, samples)) / math.fsum(sample.seconds for sample in samples)


def _rates(settings: Settings, state: State, now: float, total: Callable[[Sample], float]) -> tuple[float, float]:
    """A total per second over the slow and over the fast window."""
    slow, fast = (_rate(_window(state, seconds, now), total) for seconds in (settings.slow_seconds, settings.fast_seconds))
    return slow, fast


def _burst(samples: list[Sample]) -> float:
    """The highest rate of the last one, two, three … samples, less what chance may have added.

    A steady stream looks like a burst now and then, the more so in a short time; a count of n has a deviation of √n.
    """
    highest = arrivals = seconds = 0.0
    for sample in reversed(samples):
        arrivals, seconds = arrivals + sample.arrivals, seconds + sample.seconds
        highest = max(highest, (arrivals - _DEVIATIONS * math.sqrt(arrivals)) / seconds)
    return highest


def _in_flight(sample: Sample) -> float:
    return sample.in_flight * sample.seconds


def _arrivals(sample: Sample) -> float:
    return sample.arrivals


def _by_work(settings: Settings, state: State, observation: Observation, now: float) -> tuple[int, str, State]:
    """The work that comes in (arrivals × service time = slots kept busy), and what it takes to drain the queue."""
    waiting, service = state.samples[-1][1].waiting, state.service_seconds
    if service is None:
        demand = max(_rates(settings, state, now, _in_flight))
        why = f"no request has finished yet, {demand:.1f} in flight" if demand else "no request yet"
    else:
        slow, fast = (_window(state, seconds, now) for seconds in (settings.slow_seconds, settings.fast_seconds))
        rate = max(_rate(slow, _arrivals), _burst(fast))
        drain = waiting * service / min(settings.drain_seconds, settings.request_timeout / 4)
        demand = rate * service + drain
        why = f"{rate:.1f} requests/s × {_duration(service)} keep {rate * service:.2f} slots busy"
        if waiting:
            why += f" and {_count(waiting, 'request')} waiting ask for {drain:.2f} more"
    size = max(1 if waiting else 0, _ceil(demand / settings.per_replica))
    return size, f"{why}, {settings.per_replica:.3g} per replica", state


def _by_knative(settings: Settings, state: State, observation: Observation, now: float) -> tuple[int, str, State]:
    """The means of both windows over a replica's share, with panic: it starts at a burst, and in it nothing shrinks."""
    slow, fast = _rates(settings, state, now, _in_flight if settings.metric is Metric.CONCURRENCY else _arrivals)
    ready = max(1, observation.ready)
    least, most = _reach(settings, ready)
    by_slow, by_fast = _ceil(slow / settings.per_replica), _ceil(fast / settings.per_replica)
    if by_fast / ready >= settings.panic_threshold:
        state = replace(state, panic_at=now)
    elif state.panic_at is not None and now > state.panic_at + settings.slow_seconds:
        state = replace(state, panic_at=None, panic_peak=0)
    size = max(least, min(by_slow, most))
    why = f"{settings.metric} {slow:.2f} over {settings.slow_seconds:g} s and {fast:.2f} over {settings.fast_seconds:g} s"
    why += f", {settings.per_replica:.3g} per replica"
    if state.panic_at is not None:
        size = max(size, max(least, min(by_fast, most)), state.panic_peak)
        why += f"; in panic, nothing shrinks for {state.panic_at + settings.slow_seconds - now:.0f} s"
        state = replace(state, panic_peak=size)
    return size, why, state


_BY_METRIC: dict[Metric, Callable[[Settings, State, Observation, float], tuple[int, str, State]]] = {
    Metric.WORK: _by_work,
    Metric.CONCURRENCY: _by_knative,
    Metric.RPS: _by_knative,
}


def _asks(settings: Settings, state: State, size: int, now: float) -> tuple[tuple[float, int], ...]:
    """The asks that may still hold off a smaller one: those young enough and larger than all that came after."""
    return (*((at, asked) for at, asked in state.asks if at > now - settings.scale_down_seconds and asked > size), (now, size))


# A limit turns a size into the one that is allowed, and says why if they differ.
_Limit = Callable[[Settings, State, Observation, int, float], tuple[int, str]]


def _delay(settings: Settings, state: State, observation: Observation, size: int, now: float) -> tuple[int, str]:
    at, largest = state.asks[0]
    if largest <= size:
        return size, ""
    return largest, f"{size} would do, {largest} stay for {at + settings.scale_down_seconds - now:.0f} s more (scale-down delay)"


def _after_restart(settings: Settings, state: State, observation: Observation, size: int, now: float) -> tuple[int, str]:
    left = state.since + settings.slow_seconds - now
    if left <= 0 or size >= state.found:
        return size, ""
    return state.found, f"the {state.found} found at the start stay for {left:.0f} s more"


def _steps(settings: Settings, state: State, observation: Observation, size: int, now: float) -> tuple[int, str]:
    if settings.metric is not Metric.WORK:
        return size, ""  # Knative takes its steps before the delay
    # what died since is no reason to come back more slowly
    present = max(observation.present, _current(state, observation))
    least, most = _reach(settings, present)
    if least <= size <= most:
        return size, ""
    return max(least, min(size, most)), f"{size} wanted, from {present} in steps"


def _reach(settings: Settings, present: int) -> tuple[int, int]:
    return math.floor(present / settings.down_rate), math.ceil(settings.up_rate * max(1, present))


def _bounds(settings: Settings, state: State, observation: Observation, size: int, now: float) -> tuple[int, str]:
    if size < settings.min_replicas:
        return settings.min_replicas, f"at least {settings.min_replicas} (minReplicas)"
    if size > settings.max_replicas:
        return settings.max_replicas, f"{size} wanted, at most {settings.max_replicas} (maxReplicas)"
    return size, ""


def _starts(settings: Settings, observation: Observation, size: int) -> tuple[int, str]:
    """Comes last, so that not even minReplicas starts all at once."""
    if settings.max_starting is None:
        return size, ""
    most = observation.ready + max(observation.starting, settings.max_starting)
    if size <= most:
        return size, ""
    return most, f"{size} wanted, at most {settings.max_starting} start at once"


def _ceil(quotient: float) -> int:
    return math.ceil(quotient - _ROUNDING)


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
