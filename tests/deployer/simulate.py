"""A service under load, as discrete events: the other side of `deployer.autoscaler` in its tests.

Requests wait in one first-in-first-out queue for a free slot of a ready replica.  Once a tick the world is counted into
a `Sample`, the scaler decides on a clock that only this file moves, and what it wants is carried out: a replica takes
`startup` seconds to be ready, and one that is removed finishes its work.  Run as a script it draws docs/autoscaling.svg.
"""

import math
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path

from deployer.autoscaler import Decision, Metric, Observation, Sample, Settings, State, decide, knative

# (seconds from the start, seconds of service), by time
Arrivals = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class World:
    """What is served and by what.  `kill` maps a second to how many ready replicas die then; their requests are retried."""

    slots: int = 4
    startup: float = 4.0
    replicas: int = 1
    tick: float = 1.0
    seconds: float = 900.0
    kill: dict[float, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """What a tick saw and what it decided; `decision` is None where nobody scales."""

    at: float
    ready: int
    starting: int
    waiting: int
    arrivals: int
    decision: Decision | None


@dataclass
class Outcome:
    waits: list[float] = field(default_factory=list)
    sojourns: list[float] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    arrived: int = 0
    finished: int = 0
    left: int = 0
    # integrals over time: replicas that are there in any state, requests in the system
    replica_seconds: float = 0.0
    request_seconds: float = 0.0

    @property
    def peak(self) -> int:
        return max(m.ready + m.starting for m in self.moments)

    @property
    def changes(self) -> list[int]:
        """The sizes wanted, one after the other, without repetitions."""
        sizes = [m.decision.replicas for m in self.moments if m.decision]
        return [size for i, size in enumerate(sizes) if i == 0 or size != sizes[i - 1]]

    def percentile(self, part: float) -> float:
        ordered = sorted(self.sojourns)
        return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1)]


class _Replica:
    def __init__(self) -> None:
        self.ready = False
        self.stopping = False
        self.gone = False
        # request number → (arrived, started, service)
        self.running: dict[int, tuple[float, float, float]] = {}


class _Simulation:
    def __init__(self, world: World, arrivals: Arrivals, settings: Settings | None) -> None:
        self.world, self.arrivals, self.settings = world, arrivals, settings
        self.state, self.outcome, self.now = State(), Outcome(), 0.0
        self.replicas = [_Replica() for _ in range(world.replicas)]
        for replica in self.replicas:
            replica.ready = True
        # (number, arrived, service)
        self.queue: deque[tuple[int, float, float]] = deque()
        self.events: list[tuple[float, int, str, object]] = []
        self.order = 0
        self.in_flight = 0
        self.new_sample()

    def new_sample(self) -> None:
        self.sample_arrivals, self.sample_finished, self.sample_busy = 0, 0, 0.0
        self.sample_start_area = self.outcome.request_seconds

    def push(self, at: float, kind: str, what: object = None) -> None:
        self.order += 1
        heappush(self.events, (at, self.order, kind, what))

    def run(self) -> Outcome:
        ticks = int(self.world.seconds / self.world.tick)
        for number in range(1, ticks + 1):
            self.push(number * self.world.tick, "tick")
        for at, count in self.world.kill.items():
            self.push(at, "kill", count)
        waiting = iter(enumerate(self.arrivals))
        coming = next(waiting, None)
        while self.events and self.now < self.world.seconds:
            if coming is not None and coming[1][0] <= self.events[0][0]:
                number, (at, service) = coming
                self.advance(at)
                self.arrive(number, service)
                coming = next(waiting, None)
                continue
            at, _, kind, what = heappop(self.events)
            self.advance(at)
            getattr(self, kind)(what)
        self.outcome.left = self.in_flight
        return self.outcome

    def advance(self, at: float) -> None:
        passed = at - self.now
        self.outcome.replica_seconds += passed * len(self.replicas)
        self.outcome.request_seconds += passed * self.in_flight
        self.now = at

    def arrive(self, number: int, service: float) -> None:
        self.outcome.arrived += 1
        self.sample_arrivals += 1
        self.in_flight += 1
        self.queue.append((number, self.now, service))
        self.dispatch()

    def dispatch(self) -> None:
        while self.queue:
            free = [r for r in self.replicas if r.ready and not r.stopping and len(r.running) < self.world.slots]
            if not free:
                return
            replica = min(free, key=lambda r: len(r.running))
            number, arrived, service = self.queue.popleft()
            replica.running[number] = (arrived, self.now, service)
            self.push(self.now + service, "finish", (replica, number))

    def finish(self, what: tuple[_Replica, int]) -> None:
        replica, number = what
        if replica.gone:
            return
        arrived, started, service = replica.running.pop(number)
        self.outcome.waits.append(started - arrived)
        self.outcome.sojourns.append(self.now - arrived)
        self.outcome.finished += 1
        self.sample_finished += 1
        self.sample_busy += service
        self.in_flight -= 1
        if replica.stopping and not replica.running:
            self.replicas.remove(replica)
        self.dispatch()

    def up(self, replica: _Replica) -> None:
        if not replica.gone:
            replica.ready = True
            self.dispatch()

    def kill(self, count: int) -> None:
        for replica in [r for r in self.replicas if r.ready and not r.stopping][:count]:
            replica.gone = True
            self.replicas.remove(replica)
            self.queue.extendleft(reversed([(number, arrived, service) for number, (arrived, _, service) in replica.running.items()]))
        self.dispatch()

    def tick(self, _: object) -> None:
        ready = [r for r in self.replicas if r.ready and not r.stopping]
        starting = [r for r in self.replicas if not r.ready]
        arrivals, decision = self.sample_arrivals, None
        if self.settings is not None:
            seen = Observation(len(ready), len(starting), startup_seconds=self.world.startup, samples=(self.sample(),))
            decision, self.state = decide(self.settings, self.state, seen, self.now)
            self.resize(decision.replicas, ready, starting)
        self.outcome.moments.append(Moment(self.now, len(ready), len(starting), len(self.queue), arrivals, decision))
        self.new_sample()

    def sample(self) -> Sample:
        return Sample(
            at=self.now,
            seconds=self.world.tick,
            arrivals=self.sample_arrivals,
            finished=self.sample_finished,
            busy_seconds=self.sample_busy,
            waiting=len(self.queue),
            in_flight=(self.outcome.request_seconds - self.sample_start_area) / self.world.tick,
        )

    def resize(self, wanted: int, ready: list[_Replica], starting: list[_Replica]) -> None:
        for _ in range(wanted - len(ready) - len(starting)):
            replica = _Replica()
            self.replicas.append(replica)
            self.push(self.now + self.world.startup, "up", replica)
        for _ in range(len(ready) + len(starting) - wanted):
            if starting:
                replica = starting.pop()
                replica.gone = True
                self.replicas.remove(replica)
                continue
            replica = min(ready, key=lambda r: len(r.running))
            ready.remove(replica)
            replica.stopping = True
            if not replica.running:
                self.replicas.remove(replica)


def simulate(world: World, arrivals: Arrivals, settings: Settings | None) -> Outcome:
    """What comes of these arrivals; `settings` None keeps the number of replicas as it is."""
    return _Simulation(world, arrivals, settings).run()


def poisson(rate: Callable[[float], float], most: float, seconds: float, seed: int, service: float, fixed: bool = False) -> Arrivals:
    """Arrivals at a rate that changes with time and is never above `most`; times of service are exponential, or fixed."""

    def times() -> Iterator[tuple[float, float]]:
        chance, at = random.Random(seed), 0.0
        while (at := at + chance.expovariate(most)) < seconds:
            if chance.random() * most < rate(at):
                yield at, service if fixed else chance.expovariate(1 / service)

    return list(times())


def step(at: float) -> float:
    return 60.0 if 300 <= at < 600 else 5.0


def spikes(at: float) -> float:
    return 80.0 if 200 <= at < 230 or 500 <= at < 530 else 0.0


def sine(at: float) -> float:
    return 32.5 - 27.5 * math.cos(2 * math.pi * at / 300)


def ramp(at: float) -> float:
    return min(80.0, max(2.0, (at - 100) / 5))


def flash_crowd(at: float) -> float:
    """Doubles every five seconds from 2 to 80, and is forgotten slowly."""
    return 2.0 if at < 200 else max(2.0, min(80.0, 2 * 2 ** ((at - 200) / 5)) * (1.0 if at < 300 else math.exp((300 - at) / 90)))


def bursts(seed: int) -> Callable[[float], float]:
    chance = random.Random(seed)
    pieces = [chance.choice((2.0, 2.0, 2.0, 10.0, 40.0, 80.0)) for _ in range(100)]
    return lambda at: pieces[int(at / 20)]
