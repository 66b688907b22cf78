"""Prometheus families that are not counted but looked up or worked out when somebody asks, and how families are written."""

import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from prometheus_client import ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

# The process metrics that several processes do not have the sum of, but the least.
_LEAST = ("process_start_time_seconds", "process_max_fds")
_OF_PROCESS = re.compile(r"_(\d+)\.db")


class Page(NamedTuple):
    """Families that the library may write as it writes a registry's."""

    families: Iterable[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families

    def text(self) -> bytes:
        return generate_latest(self)


def build(version: str) -> Metric:
    """What runs here, as labels of a 1."""
    said = {"version": version, "python": platform.python_version()}
    family = GaugeMetricFamily("serve_build_info", "What runs here: Serveplane's version and Python's", labels=list(said))
    family.add_metric(list(said.values()), 1)
    return family


def siblings(directory: str) -> list[int]:
    """The processes that live, write into that folder of the library's and have our parent; ours among them."""
    written = {int(m[1]) for name in os.listdir(directory) if (m := _OF_PROCESS.search(name))}
    parent = os.getppid()
    return sorted(pid for pid in {*written, os.getpid()} if _parent_of(pid) == parent)


def _parent_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def processes(pids: Iterable[int]) -> list[Metric]:
    """The process metrics of all of them as those of one: their sums, but for `_LEAST`."""
    together: dict[str, Metric] = {}
    for pid in pids:
        for family in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            before = together.setdefault(family.name, family)
            if before is not family:
                (one,), (other,) = before.samples, family.samples
                join = min if one.name in _LEAST else sum
                before.samples = [one._replace(value=join([one.value, other.value]))]
    return list(together.values())


class Family(NamedTuple):
    """A family under a name that the library would not write: samples are (name, labels, value)."""

    name: str
    kind: str
    about: str
    samples: Sequence[tuple[str, Mapping[str, str], float]]


def text(families: Iterable[Family]) -> bytes:
    lines: list[str] = []
    for family in families:
        lines += [f"# HELP {family.name} {family.about}", f"# TYPE {family.name} {family.kind}"]
        for name, labels, value in family.samples:
            said = ",".join(f'{key}="{_escaped(one)}"' for key, one in labels.items())
            lines.append(f"{name}{{{said}}} {value!r}" if said else f"{name} {value!r}")
    return "".join(f"{line}\n" for line in lines).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
