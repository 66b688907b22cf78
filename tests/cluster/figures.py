"""What the controller costs: `python -m tests.cluster.figures` boots a control plane of its own and prints a table.

Many services at once, from applied to Ready, through a quiet minute, and deleted again; and what the kinds cost the API
server.  etcd, the API server and its controllers are real, pods' statuses are written by a thread at once (`plane.Kubelet`).
KServe's figures were measured in the same way, on a machine of the same size.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from deployer.kubernetes.kinds import DEPLOYMENT, HPA, HTTP_ROUTE, INFERENCE_SERVICE, POD, SERVICE_KIND, VIRTUAL_SERVICE
from tests.cluster.conftest import CRDS
from tests.cluster.plane import Kubelet, Plane, booted, service, until
from tests.cluster.process import Process

ROUTE = {"istio": VIRTUAL_SERVICE, "gateway-api": HTTP_ROUTE}
READS = ("GET", "WATCH")


@dataclass(frozen=True)
class Figures:
    """Seconds count from the first service's applying; "each" is by service, until all are Ready."""

    services: int
    applied_s: float
    children_s: float
    ready_s: float
    writes_each: float
    reads_each: float
    reconciles_each: float
    cpu_ms_each: float
    rss_mib: float
    pss_mib: float
    steady_writes: int
    steady_reads: int
    steady_cpu_s: float
    deleted_s: float


@dataclass(frozen=True)
class Kinds:
    """What the CustomResourceDefinitions cost."""

    bytes: int
    api_server_without_mib: float
    api_server_with_mib: float


ABOUT: dict[str, tuple[str, float | None, str]] = {
    "applied_s": ("all applied, one after the other, s", None, "2.7"),
    "children_s": ("all Deployments, Services, autoscalers and routes, s", 24, "24"),
    "ready_s": ("all Ready, s", None, "57"),
    "writes_each": ("writes a service until Ready", 8, "19"),
    "reads_each": ("reads a service until Ready", None, "24"),
    "reconciles_each": ("reconciles a service until Ready", None, "5"),
    "cpu_ms_each": ("CPU a service until Ready, ms", 100, "59"),
    "rss_mib": ("memory of the controller (RSS at its most), MiB", 150, "104"),
    "pss_mib": ("memory of the controller (PSS), MiB", None, ""),
    "steady_writes": ("writes in a quiet minute", 0, "0"),
    "steady_reads": ("reads in a quiet minute, but for watches and looks for absent kinds", 0, "0"),
    "steady_cpu_s": ("CPU in a quiet minute, s", None, "0.05"),
    "deleted_s": ("all deleted, with all they owned, s", 16, "16"),
    "bytes": ("all CustomResourceDefinitions, bytes", 500_000, "1 900 000"),
    "api_server_without_mib": ("the API server without them (RSS), MiB", None, ""),
    "api_server_with_mib": ("the API server with them (RSS), MiB", None, "1 000 to 1 300"),
}
"""By figure: what it is, the most that it may be, and KServe's."""


def main(argv: list[str]) -> int:
    """1 where a figure is more than it may be."""
    parser = argparse.ArgumentParser("python -m tests.cluster.figures", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--services", type=int, default=200)
    parser.add_argument("--quiet", type=float, default=60.0, help="seconds of the steady state that are looked at")
    parser.add_argument("--ingress", choices=sorted(ROUTE), default="gateway-api")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and no table")
    options = parser.parse_args(argv)
    with booted(kinds=False) as plane:
        of_kinds = kinds(plane)
        plane.configure(options.ingress)
        kubelet = Kubelet(plane)
        kubelet.start()
        one = Process(plane.kubeconfig, "figures", "--namespaces", plane.namespace("figures"))
        try:
            until(one.leads)
            found = measure(plane, one, "figures", options.services, options.quiet, options.ingress)
        finally:
            kubelet.stop()
            one.stop()
    told = asdict(found) | asdict(of_kinds)
    print(json.dumps(told) if options.json else table(told))
    return int(any(most is not None and told[name] > most for name, (_, most, _) in ABOUT.items()))


def measure(plane: Plane, one: Process, namespace: str, count: int, quiet: float, ingress: str) -> Figures:
    """`one` leads and has nothing to do; `quiet` seconds of the steady state are looked at."""
    kinds = (DEPLOYMENT, SERVICE_KIND, HPA, ROUTE[ingress])
    names = [f"s{number}" for number in range(count)]
    reads, writes, reconciles, cpu = _reads(one), _writes(one), one.metric("serveplane_reconciles_total"), one.cpu()
    began = time.monotonic()
    for name in names:
        plane.apply(service(namespace, name))
    applied = time.monotonic() - began
    # each look is a list of hundreds of objects, which the API server has to make between its other work
    until(lambda: all(len(plane.all(kind, namespace)) == count for kind in kinds), 300.0, every=0.25)
    children = time.monotonic() - began
    until(lambda: _all_ready(plane, namespace, count), 300.0, every=0.25)
    ready = time.monotonic() - began
    _settled(one)
    each = (_writes(one) - writes) / count, (_reads(one) - reads) / count
    worked = (one.metric("serveplane_reconciles_total") - reconciles) / count
    used = (one.cpu() - cpu) / count
    reads, writes, cpu = _reads(one, absent=False), _writes(one), one.cpu()
    time.sleep(quiet)
    steady = int(_writes(one) - writes), int(_reads(one, absent=False) - reads), one.cpu() - cpu
    rss, pss = one.memory() / 2**20, one.shared_memory() / 2**20
    began = time.monotonic()
    for name in names:
        plane.api.delete(INFERENCE_SERVICE.path(namespace, name))
    until(lambda: not any(plane.all(kind, namespace) for kind in (*kinds, POD)), 300.0, every=0.25)
    deleted = time.monotonic() - began
    return Figures(count, applied, children, ready, *each, worked, used * 1000, rss, pss, *steady, deleted)


def kinds(plane: Plane) -> Kinds:
    """Installs them."""
    before = _settled_memory(plane)
    plane.install()
    size = sum(path.stat().st_size for path in CRDS.glob("*.yaml"))
    return Kinds(size, before / 2**20, _settled_memory(plane) / 2**20)


def table(told: dict[str, float]) -> str:
    rows = ["| what | here | at most | KServe |", "|---|--:|--:|--:|"]
    for name, (about, most, theirs) in ABOUT.items():
        rows.append(f"| {about} | {_number(told[name])} | {'' if most is None else _number(most)} | {theirs} |")
    return "\n".join([f"{told['services']} services:", "", *rows])


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.0f}" if value == int(value) or value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _all_ready(plane: Plane, namespace: str, count: int) -> bool:
    listed = plane.all(INFERENCE_SERVICE, namespace)
    states = [{c["type"]: c["status"] for c in (raw.get("status") or {}).get("conditions", ())} for raw in listed]
    return len(listed) == count and all(one.get("Ready") == "True" for one in states)


def _writes(one: Process) -> float:
    return sum(count for (verb, _), count in one.requests().items() if verb not in READS)


def _reads(one: Process, *, absent: bool = True) -> float:
    """`absent`: with those of what is not there, such as the kinds of a mesh that the cluster has not (yet)."""
    return sum(count for (verb, code), count in one.requests().items() if verb == "GET" and (absent or code != 404))


def _settled(one: Process) -> None:
    """Until nothing was written for two seconds."""
    last, since = _writes(one), time.monotonic()
    while time.monotonic() < since + 2:
        time.sleep(0.2)
        now = _writes(one)
        if now != last:
            last, since = now, time.monotonic()


def _settled_memory(plane: Plane) -> int:
    """Bytes of the API server once it has made its schemas of all kinds and its collector of garbage has come by."""
    for path in ("/openapi/v2", "/openapi/v3"):
        plane.api.get(path)
    held = []
    for _ in range(20):
        time.sleep(1)
        lines = Path(f"/proc/{plane.pid('kube-apiserver')}/status").read_text().splitlines()
        held.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")))
    return held[-1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
