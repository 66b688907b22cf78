"""`python -m loadtests.compare`: the same requests to several servers in turn, a table and a picture of what came of them.

    python -m loadtests.compare ours=http://127.0.0.1:8080 theirs=http://127.0.0.1:9000 --model iris --rate 100 --rate 400

Machines have good and bad seconds: so each rate goes to each server in every round, one after the other, and a figure is over all
rounds.  An open loop, as in `rate`.  With `--pid NAME=PID` the CPU of that process and its children counts too.
"""

import argparse
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtests import payloads, report
from loadtests.openloop import Answer, Load, Lost

POOL = 256
WARM_SECONDS = 1.0


@dataclass
class Cell:
    """What one server did at one rate, over all rounds.  `cpu` in seconds, None where nobody looked."""

    name: str
    rate: float
    answers: list[Answer] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float | None = None

    @property
    def milliseconds(self) -> float | None:
        """CPU of an answered request."""
        return None if self.cpu is None or not self.answers else self.cpu * 1e3 / len(self.answers)


def table(cells: Sequence[Cell]) -> str:
    """Markdown: a line for each server and rate, and how its CPU compares with the first server's."""
    lines = [
        "| server | asked a second | answered | failed | 50 %, ms | 95 %, ms | 99 %, ms | slowest, ms | CPU, ms | share |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for cell in cells:
        found = report.figures(cell.answers, cell.lost, cell.seconds or 1.0)
        first = next(one.milliseconds for one in cells if one.rate == cell.rate)
        own = cell.milliseconds
        cpu = "" if own is None else f"{own:.3f}"
        share = "" if own is None or not first else f"{own / first:.2f}"
        times = " | ".join(f"{one:.2f}" for one in (found.p50, found.p95, found.p99, found.longest))
        lines.append(f"| {cell.name} | {cell.rate:g} | {found.rate:.1f} | {found.failures} | {times} | {cpu} | {share} |")
    return "\n".join(lines) + "\n"


def picture(cells: Sequence[Cell]) -> str:
    """An SVG: the time within which 99 % were answered, by rate; and how times are spread at the highest rate."""
    names = list(dict.fromkeys(cell.name for cell in cells))
    by_rate = {
        name: [
            (cell.rate, report.figures(cell.answers, cell.lost, cell.seconds or 1.0).p99) for cell in cells if cell.name == name
        ]
        for name in names
    }
    highest = max(cell.rate for cell in cells)
    spread = {cell.name: report.distribution(cell.answers) for cell in cells if cell.rate == highest}
    charts = [
        report.chart("99 % were answered within", by_rate, "requests a second", "ms"),
        report.chart(f"At {highest:g} requests a second", spread, "0, 50, 90, 99, 99.9 % of the requests", "ms"),
    ]
    return report.stacked(charts)


def main(argv: list[str]) -> int:
    options = _options(argv)
    servers, pids = dict(options.server), dict(options.pid)
    headers = payloads.read_headers(options.header)
    first = next(iter(servers.values()))
    try:
        signature = payloads.ask_signature(first, options.model, headers, options.example)
    except payloads.Unusable as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    pool = payloads.pool(signature, POOL, options.rows, options.seed)
    made = [payloads.BODIES[options.protocol](signature, arrays) for arrays in pool]
    path = payloads.path(options.protocol, options.model)

    def run(name: str, rate: float, seconds: float) -> Load:
        url = servers[name].rstrip("/") + path
        with Load(url, lambda number: made[number % POOL], rate, headers=headers) as load:
            threading.Event().wait(seconds)
        return load

    rates = options.rate or [100.0]
    cells = {(rate, name): Cell(name, rate) for rate in rates for name in servers}
    for name in servers:
        run(name, rates[0], WARM_SECONDS)
    for number in range(options.rounds):
        for (rate, name), cell in cells.items():
            print(f"round {number + 1} of {options.rounds}: {name} at {rate:g} a second", file=sys.stderr)
            before = cpu_seconds(pids[name]) if name in pids else None
            load = run(name, rate, options.seconds)
            if before is not None:
                cell.cpu = (cell.cpu or 0.0) + cpu_seconds(pids[name]) - before
            cell.answers += load.answers
            cell.lost += load.lost
            cell.seconds += options.seconds
    text = table(list(cells.values()))
    print(text, end="")
    if options.markdown:
        options.markdown.write_text(text)
    if options.svg:
        options.svg.write_text(picture(list(cells.values())))
    return 1 if any(cell.lost for cell in cells.values()) else 0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of all below it, so far; what has ended counts with its parent."""
    ticks = 0
    for one in _with_children(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue  # it has ended between two looks
        ticks += sum(int(value) for value in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = tasks.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _with_children(int(child))


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m loadtests.compare", description=__doc__.splitlines()[0])
    add = parser.add_argument

    def named(text: str) -> tuple[str, str]:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
        return name, value

    def process(text: str) -> tuple[str, int]:
        name, value = named(text)
        if not value.isdecimal() or not Path(f"/proc/{value}").exists():
            raise argparse.ArgumentTypeError(f"{value!r} is no process of this machine")
        return name, int(value)

    add("server", nargs="+", type=named, help="NAME=URL, such as ours=http://127.0.0.1:8080; the first says what the model takes")
    add("--model", required=True, help="the model's name, the same at all")
    add("--rate", type=float, action="append", help="requests a second; several times for several (default: 100)")
    add("--seconds", type=float, default=5.0, help="of each rate, at each server, in each round")
    add("--rounds", type=int, default=3)
    add("--protocol", choices=sorted(payloads.BODIES), default="v2")
    add("--rows", type=int, default=1, help="rows of each request")
    add("--seed", type=int, default=7, help="of the requests' values")
    add("--header", action="append", default=[], help="NAME: VALUE, with every request; several times")
    add("--example", help="a file with a V2 request that the model takes: where its texts are from")
    add("--pid", type=process, action="append", default=[], help="NAME=PID: whose CPU counts, for a server of this machine")
    add("--markdown", type=Path, help="where the table goes, besides stdout")
    add("--svg", type=Path, help="where the picture goes")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
