"""`python -m loadtests.rate`: requests at a constant rate, an HTML page of what came of them, and a verdict.

An open loop: request n is due n / rate seconds after the first, whatever became of those before, and its time counts from
then.  So what waits in a queue is seen, which a loop of users does not show: they wait with it.
"""

import argparse
import sys
import threading
from pathlib import Path

from loadtests import payloads, report
from loadtests.openloop import Load
from loadtests.verdict import Limits, shortcomings

POOL = 256


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m loadtests.rate", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("url", help="of the service, such as http://127.0.0.1:8080")
    add("model", help="the model's name")
    add("--rate", type=float, default=100.0, help="requests a second")
    add("--seconds", type=float, default=30.0)
    add("--protocol", choices=sorted(payloads.BODIES), default="v2")
    add("--rows", type=int, default=1, help="rows of each request")
    add("--seed", type=int, default=7, help="of the requests' values")
    add("--header", action="append", default=[], help="NAME: VALUE, with every request; several times")
    add("--example", help="a file with a V2 request that the model takes: where its texts are from")
    add("--p99", type=float, help="milliseconds within which 99 %% have to be answered")
    add("--max-failures", type=float, default=0.0, help="the share of requests that may fail")
    add("--min-rate", type=float, help="answers a second that there have to be")
    add("--html", type=Path, help="where the page goes")
    options = parser.parse_args(argv)

    headers = payloads.read_headers(options.header)
    try:
        signature = payloads.ask_signature(options.url, options.model, headers, options.example)
    except payloads.Unusable as error:
        print(f"rate: {error}", file=sys.stderr)
        return 1
    pool = payloads.pool(signature, POOL, options.rows, options.seed)
    made = [payloads.BODIES[options.protocol](signature, arrays) for arrays in pool]
    url = options.url.rstrip("/") + payloads.path(options.protocol, options.model)
    with Load(url, lambda number: made[number % POOL], options.rate, headers=headers) as load:
        threading.Event().wait(options.seconds)
    found = report.figures(load.answers, load.lost, options.seconds)
    missed = list(shortcomings(found, Limits(options.max_failures, options.p99, options.min_rate)))
    print(
        f"{found.requests} requests at {options.rate:g} a second, {found.failures} failed; "
        f"50 % {found.p50:.2f} ms, 95 % {found.p95:.2f} ms, 99 % {found.p99:.2f} ms, slowest {found.longest:.1f} ms"
    )
    for one in load.lost[:5]:
        print(f"  failed after {one.at:.1f} s: {one.why}", file=sys.stderr)
    for line in missed:
        print(f"falls short: {line}", file=sys.stderr)
    if options.html:
        lines = {name: report.by_second(load.answers, share) for name, share in (("50 %", 0.5), ("99 %", 0.99), ("slowest", 1.0))}
        charts = [
            report.chart("Latency over time", lines, "seconds", "ms"),
            report.chart(
                "Latency by share of the requests", {"": report.distribution(load.answers)}, "0, 50, 90, 99, 99.9 %", "ms"
            ),
        ]
        title = f"{options.model} at {options.rate:g} requests a second, {options.protocol}"
        options.html.write_text(report.page(title, found, missed, charts))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
