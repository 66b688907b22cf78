"""A revision under load, as discrete events: the other side of `deployer.autoscaler` in its tests and in its page.

Requests wait in one first-in-first-out queue for a free slot of a ready replica.  Once a tick the world is counted into a
`Sample`, the scaler decides on a clock that only this file moves, and what it wants is carried out: a replica takes
`startup` seconds to be ready, and one that is removed finishes its work.

`python -m tests.deployer.simulate table` prints the tables of docs/autoscaling.md, `… picture` draws docs/autoscaling.svg.
"""

import argparse
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Any

from deployer.autoscaler import Decision, Metric, Observation, Sample, Settings, State, decide, knative

# (seconds from the start, seconds of service), by time
Arrivals = Sequence[tuple[float, float]]
Rate = Callable[[float], float]


@dataclass(frozen=True)
class World:
    """What serves.  Times are in seconds; `orders` and `kills` map one to a number of replicas that are ordered or die then."""

    slots: int = 4
    startup: float = 4.0
    replicas: int = 1
    tick: float = 1.0
    seconds: float = 900.0
    orders: Mapping[float, int] = field(default_factory=dict)
    # those of the ready ones; their requests are sent again
    kills: Mapping[float, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """What a tick saw and what was decided; `decision` is None where nobody scales."""

    at: float
    ready: int
    starting: int
    waiting: int
    decision: Decision | None


@dataclass
class Outcome:
    """`waits` and `sojourns` are those of the finished requests by number; the integrals are over time."""

    arrived: int = 0
    waits: dict[int, float] = field(default_factory=dict)
    # (when it finished, how long it took)
    sojourns: list[tuple[float, float]] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    left: int = 0
    replica_seconds: float = 0.0
    request_seconds: float = 0.0

    @property
    def peak(self) -> int:
        return max(moment.ready + moment.starting for moment in self.moments)

    @property
    def sizes(self) -> list[int]:
        """The sizes wanted, one after the other, without repetitions."""
        wanted = [moment.decision.replicas for moment in self.moments if moment.decision]
        return wanted[:1] + [after for before, after in pairwise(wanted) if after != before]

    def percentile(self, part: float, since: float = 0.0, until: float = math.inf) -> float:
        """Of the seconds that the requests took which finished in that time; 0 where none did."""
        ordered = sorted(took for at, took in self.sojourns if since <= at < until)
        return ordered[math.ceil(part * len(ordered)) - 1] if ordered else 0.0

    def slower_than(self, seconds: float) -> float:
        return sum(wait > seconds for wait in self.waits.values()) / max(1, len(self.waits))


class _Replica:
    def __init__(self, ready: bool = False) -> None:
        self.ready = ready
        self.stopping = False
        self.gone = False
        # request number → (arrived, service)
        self.running: dict[int, tuple[float, float]] = {}


class _Simulation:
    def __init__(self, world: World, arrivals: Arrivals, settings: Settings | None) -> None:
        self.world, self.arrivals, self.settings = world, arrivals, settings
        self.state, self.outcome, self.now = State(), Outcome(), 0.0
        self.replicas = [_Replica(ready=True) for _ in range(world.replicas)]
        # (number, arrived, service)
        self.queue: deque[tuple[int, float, float]] = deque()
        self.in_flight = 0
        # (when, in what order, what to do)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0
        self.forget()

    def forget(self) -> None:
        """A new sample begins."""
        self.counted_arrivals, self.counted_finished, self.counted_busy = 0, 0, 0.0
        self.counted_from = self.outcome.request_seconds

    def run(self) -> Outcome:
        for number in range(1, int(self.world.seconds / self.world.tick) + 1):
            self.later(number * self.world.tick, self.count)
        for at, number in self.world.orders.items():
            self.later(at, partial(self.start, number))
        for at, number in self.world.kills.items():
            self.later(at, partial(self.kill, number))
        self.expect(0)
        while self.events and self.events[0][0] <= self.world.seconds:
            at, _, what = heappop(self.events)
            self.advance(at)
            what()
        self.advance(self.world.seconds)
        self.outcome.left = self.in_flight
        return self.outcome

    def later(self, at: float, what: Callable[[], None]) -> None:
        self.order += 1
        heappush(self.events, (at, self.order, what))

    def advance(self, at: float) -> None:
        self.outcome.replica_seconds += (at - self.now) * len(self.replicas)
        self.outcome.request_seconds += (at - self.now) * self.in_flight
        self.now = at

    def expect(self, number: int) -> None:
        if number < len(self.arrivals):
            self.later(self.arrivals[number][0], partial(self.arrive, number))

    def arrive(self, number: int) -> None:
        self.expect(number + 1)
        self.outcome.arrived += 1
        self.counted_arrivals += 1
        self.in_flight += 1
        self.queue.append((number, self.now, self.arrivals[number][1]))
        self.dispatch()

    def ready(self) -> list[_Replica]:
        return [replica for replica in self.replicas if replica.ready and not replica.stopping]

    def dispatch(self) -> None:
        while self.queue:
            replica = min(self.ready(), key=lambda replica: len(replica.running), default=None)
            if replica is None or len(replica.running) >= self.world.slots:
                return
            number, arrived, service = self.queue.popleft()
            replica.running[number] = (arrived, service)
            self.later(self.now + service, partial(self.finish, replica, number))

    def finish(self, replica: _Replica, number: int) -> None:
        if replica.gone:
            return
        arrived, service = replica.running.pop(number)
        self.outcome.waits[number] = max(0.0, self.now - arrived - service)
        self.outcome.sojourns.append((self.now, self.now - arrived))
        self.counted_finished += 1
        self.counted_busy += service
        self.in_flight -= 1
        if replica.stopping and not replica.running:
            self.remove(replica)
        self.dispatch()

    def start(self, number: int) -> None:
        for _ in range(number):
            replica = _Replica()
            self.replicas.append(replica)
            self.later(self.now + self.world.startup, partial(self.up, replica))

    def up(self, replica: _Replica) -> None:
        replica.ready = True
        self.dispatch()

    def remove(self, replica: _Replica) -> None:
        replica.gone = True
        self.replicas.remove(replica)

    def kill(self, number: int) -> None:
        for replica in self.ready()[:number]:
            self.remove(replica)
            self.queue.extendleft((number, *request) for number, request in reversed(replica.running.items()))
        self.dispatch()

    def count(self) -> None:
        ready = self.ready()
        starting = [replica for replica in self.replicas if not replica.ready]
        decision = None
        if self.settings is not None:
            seen = Observation(len(ready), len(starting), self.sample())
            decision, self.state = decide(self.settings, self.state, seen, self.now)
            self.resize(decision.replicas, ready, starting)
        self.outcome.moments.append(Moment(self.now, len(ready), len(starting), len(self.queue), decision))
        self.forget()

    def sample(self) -> Sample:
        return Sample(
            seconds=self.world.tick,
            arrivals=self.counted_arrivals,
            finished=self.counted_finished,
            busy_seconds=self.counted_busy,
            waiting=len(self.queue),
            in_flight=max(0.0, self.outcome.request_seconds - self.counted_from) / self.world.tick,
        )

    def resize(self, wanted: int, ready: list[_Replica], starting: list[_Replica]) -> None:
        self.start(max(0, wanted - len(ready) - len(starting)))
        # those that do nothing yet go first, then the idlest
        spare = [*reversed(starting), *sorted(ready, key=lambda replica: len(replica.running))]
        for replica in spare[: max(0, len(spare) - wanted)]:
            replica.stopping = True
            if not replica.running:
                self.remove(replica)


def simulate(world: World, arrivals: Arrivals, settings: Settings | None = None) -> Outcome:
    """What comes of these arrivals; without settings nobody scales."""
    return _Simulation(world, arrivals, settings).run()


def poisson(rate: Rate, most: float, seconds: float, seed: int, service: float = 0.08, fixed: bool = False) -> Arrivals:
    """Arrivals at a rate that changes with time and is never above `most`; times of service are exponential, or fixed."""
    chance, at, arrivals = random.Random(seed), 0.0, []
    while (at := at + chance.expovariate(most)) < seconds:
        if chance.random() * most < rate(at):
            arrivals.append((at, service if fixed else chance.expovariate(1 / service)))
    return arrivals


def step(at: float) -> float:
    return 60.0 if 300 <= at < 600 else 5.0


def spikes(at: float) -> float:
    return 80.0 if 200 <= at < 230 or 500 <= at < 530 else 0.0


def sine(at: float) -> float:
    return 32.5 - 27.5 * math.cos(2 * math.pi * at / 300)


def bursts(seed: int) -> Rate:
    """Another rate every 20 seconds."""
    chance = random.Random(seed)
    pieces = [chance.choice((2.0, 2.0, 2.0, 10.0, 40.0, 80.0)) for _ in range(100)]
    return lambda at: pieces[int(at / 20)]


# by name, what a seed makes of a trace
TRACES: Mapping[str, Callable[[int], Rate]] = {
    "step": lambda seed: step,
    "spikes": lambda seed: spikes,
    "sine": lambda seed: sine,
    "bursts": bursts,
}


def trace(name: str, seed: int) -> Arrivals:
    return poisson(TRACES[name](seed), 80.0, 900.0, seed)


STARTUPS = (1.0, 4.0, 15.0)
MAX_REPLICAS = 20


@dataclass(frozen=True)
class Policy:
    """Who decides in a row of the tables; without settings `replicas` stay what they are."""

    name: str
    settings: Settings | None
    tick: float = 1.0
    replicas: int = 1

    def run(self, name: str, startup: float, seed: int, **world: Any) -> Outcome:
        return simulate(World(startup=startup, replicas=self.replicas, tick=self.tick, **world), trace(name, seed), self.settings)


WORK = Policy("work", Settings(target=4, max_replicas=MAX_REPLICAS))
WORK_2_STARTS = Policy("work, 2 starts at once", Settings(target=4, max_replicas=MAX_REPLICAS, max_starting=2))
KNATIVE = Policy("Knative's rules, 60 s / 6 s", knative(Metric.CONCURRENCY, 4, max_replicas=MAX_REPLICAS), tick=2.0)
KNATIVE_SHORT = Policy(
    "Knative's rules, 30 s / 3 s",
    knative(Metric.CONCURRENCY, 4, max_replicas=MAX_REPLICAS, slow_seconds=30.0, fast_seconds=3.0),
    tick=1.0,
)
FIXED = Policy("3 replicas, fixed", None, replicas=3)
POLICIES = (WORK, WORK_2_STARTS, KNATIVE, KNATIVE_SHORT, FIXED)

# heading, digits, figure
COLUMNS: Sequence[tuple[str, int, Callable[[Outcome], float]]] = (
    ("p99, s", 2, lambda outcome: outcome.percentile(0.99)),
    ("waited > 1 s, %", 1, lambda outcome: 100 * outcome.slower_than(1.0)),
    ("replica-seconds", 0, lambda outcome: outcome.replica_seconds),
    ("most replicas", 1, lambda outcome: outcome.peak),
    ("changes", 1, lambda outcome: len(outcome.sizes) - 1 if outcome.sizes else 0),
)


def interval(figures: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval (Student's t, by the first term of its expansion)."""
    normal = statistics.NormalDist().inv_cdf(0.975)
    student = normal + (normal**3 + normal) / (4 * (len(figures) - 1))
    return statistics.fmean(figures), student * statistics.stdev(figures) / math.sqrt(len(figures))


def row(name: str, startup: float, policy: Policy, seeds: int) -> str:
    outcomes = [policy.run(name, startup, seed) for seed in range(seeds)]
    cells = [f"{startup:g}" if policy.settings else "–", policy.name]
    for _, digits, figure in COLUMNS:
        mean, half = interval([figure(outcome) for outcome in outcomes])
        cells.append(f"{mean:.{digits}f} ± {half:.{digits}f}")
    return f"| {' | '.join(cells)} |"


def print_tables(seeds: int) -> None:
    for name in TRACES:
        print(f"### {name}\n")
        print("| start-up, s | who decides | " + " | ".join(heading for heading, *_ in COLUMNS) + " |")
        print("|--:|---|" + "--:|" * len(COLUMNS))
        for startup in STARTUPS:
            # a fixed size starts nothing, so one row of it is enough
            for policy in POLICIES if startup == STARTUPS[-1] else POLICIES[:-1]:
                print(row(name, startup, policy, seeds), flush=True)
        print()


def draw(path: Path, name: str = "bursts", startup: float = 4.0, seed: int = 0) -> None:
    """Rate, replicas and p99 over time, of our rules and of Knative's, as one SVG."""
    runs = [(policy, policy.run(name, startup, seed), color) for policy, color in ((KNATIVE, "#c2641a"), (WORK, "#1f5fa8"))]
    seconds, every, width, height, left = World.seconds, 10.0, 840, 120, 60
    bins = [number * every for number in range(int(seconds / every))]
    rate = TRACES[name](seed)
    panels: list[tuple[str, list[tuple[str, list[tuple[float, float]]]]]] = [
        ("requests/s", [("#555555", [(at, rate(at)) for at in map(float, range(int(seconds)))])]),
        ("replicas", [(color, [(m.at, float(m.ready + m.starting)) for m in run.moments]) for _, run, color in runs]),
        ("p99 of 10 s, s", [(color, [(at, run.percentile(0.99, at, at + every)) for at in bins]) for _, run, color in runs]),
    ]
    parts = [f'<rect width="{width + left + 20}" height="{len(panels) * (height + 30) + 50}" fill="#ffffff"/>']
    parts += [
        f'<text x="{left + 260 * number}" y="16" fill="{color}">{policy.name}: {run.replica_seconds:.0f} replica-seconds</text>'
        for number, (policy, run, color) in enumerate(runs)
    ]
    for number, (label, lines) in enumerate(panels):
        top = 30 + number * (height + 30)
        most = max(value for _, points in lines for _, value in points)
        parts.append(f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#cccccc"/>')
        parts.append(f'<text x="{left + 6}" y="{top + 15}" fill="#333333">{label}</text>')
        parts.append(f'<text x="{left - 6}" y="{top + 10}" text-anchor="end" fill="#333333">{most:.3g}</text>')
        parts.append(f'<text x="{left - 6}" y="{top + height}" text-anchor="end" fill="#333333">0</text>')
        for color, points in lines:
            parts.append(
                f'<path fill="none" stroke="{color}" stroke-width="1.5" d="{_stairs(points, left, top, width / seconds, height / most, height)}"/>'
            )
    bottom = 30 + len(panels) * (height + 30)
    parts += [
        f'<text x="{left + at * width / seconds:.0f}" y="{bottom - 12}" text-anchor="middle" fill="#333333">{at} s</text>'
        for at in range(0, int(seconds) + 1, 150)
    ]
    size = f'viewBox="0 0 {width + left + 20} {bottom + 20}" font-family="sans-serif" font-size="13"'
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n' + "\n".join(parts) + "\n</svg>\n")


def _stairs(points: list[tuple[float, float]], left: float, top: float, x: float, y: float, height: float) -> str:
    """An SVG path that goes on level until the value changes."""
    path, last = [], None
    for at, value in points:
        if value != last:
            across, up = left + at * x, top + height - value * y
            path.append(f"M{across:.1f} {up:.1f}" if last is None else f"H{across:.1f}V{up:.1f}")
            last = value
    return "".join(path) + f"H{left + (points[-1][0]) * x:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("table").add_argument("--seeds", type=int, default=20, help="at least 2")
    verbs.add_parser("picture").add_argument("path", type=Path, nargs="?", default=Path("docs/autoscaling.svg"))
    told = parser.parse_args()
    if told.verb == "table":
        print_tables(told.seeds)
    else:
        draw(told.path)


if __name__ == "__main__":
    main()
