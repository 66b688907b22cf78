"""A real cluster for the tests of this folder, and nothing in its place.

`cluster` is `$KUBECONFIG`'s, where it leads to a test cluster; else a control plane of its own (etcd, API server and
controllers, no node: pods stay Pending) from the fixture folder `testcluster`, which boots in 5 s and ends with the tests.

`standing` is one with a node that has this project's images: `$KUBECONFIG`'s, or the one that `scripts/cluster up` has started.
"""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import time
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.charts.helm import CHART, helm
from tests.left_out import leave_out

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CRDS = ROOT / "charts" / "serveplane-crds" / "templates"
FIXTURE = Path(os.environ.get("TESTCLUSTER", ROOT.parent / "shared" / "testcluster"))
OF_CONTROLLER = "app.kubernetes.io/component=controller,app.kubernetes.io/part-of=serveplane"
# The tests install and remove kinds, and with a kind go all its objects.
TEST_CONTEXTS = ("testcluster", "kind-", "k3d-", "minikube")
LEFT_OUT = (
    "there is no cluster to test with. Put the testcluster fixture at {fixture} (or name it in $TESTCLUSTER), "
    "or start a cluster of your own and run: KUBECONFIG=~/.kube/config ./scripts/test tests/cluster"
)
WITHOUT_NODE = "no cluster with a node and our images runs. Start one, and run: KUBECONFIG=$(./scripts/cluster up) ./scripts/test"
STANDING = Path(os.environ.get("TESTCLUSTER_DIR", "/var/lib/testcluster")) / "kubeconfig"


class Cluster:
    """`kubectl` for it, and what its API server holds of this machine's memory, where it runs on this machine."""

    def __init__(self, kubeconfig: str, cache: Path) -> None:
        """`cache` is a folder for what kubectl finds out about this cluster, and would believe of the next one."""
        self.kubeconfig = kubeconfig
        programs = Path(os.environ.get("TESTCLUSTER_CACHE", Path.home() / ".cache" / "testcluster")) / "bin"
        path = os.pathsep.join((str(programs), os.environ.get("PATH", "")))
        self._kubectl = [shutil.which("kubectl", path=path) or "kubectl", f"--cache-dir={cache}"]
        self._pid = Path(kubeconfig).parent / "pids" / "kube-apiserver"
        self.memory_without_kinds: int | None = None

    @property
    def here(self) -> bool:
        """Whether the API server is a process of this machine, which reaches what listens on 127.0.0.1."""
        return self._pid.exists()

    def run(self, *args: str, stdin: object = None) -> subprocess.CompletedProcess[str]:
        """kubectl, whatever comes of it; `stdin` may be an object, a list of them, or text."""
        text = stdin if stdin is None or isinstance(stdin, str) else "\n---\n".join(map(json.dumps, _several(stdin)))
        environment = {**os.environ, "KUBECONFIG": self.kubeconfig}
        return subprocess.run([*self._kubectl, *args], input=text, env=environment, capture_output=True, text=True, timeout=180)

    def kubectl(self, *args: str, stdin: object = None) -> str:
        """What it says; AssertionError, with what it complains of, where it fails."""
        done = self.run(*args, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(args)}: {done.stderr}"
        return done.stdout

    def get(self, *args: str) -> dict:
        return json.loads(self.kubectl("get", *args, "-o", "json"))

    def memory(self) -> int:
        """Bytes that an API server of this machine holds."""
        pid = self._pid.read_text().split()[0]
        (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS")]
        return int(line.split()[1]) * 1024


def _several(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    given = os.environ.get("KUBECONFIG")
    if given:
        yield _for_tests(Cluster(given, folder / "cache"))
        return
    if not (FIXTURE / "up").exists():
        leave_out(LEFT_OUT.format(fixture=FIXTURE))
    # of its own, beside any cluster that runs already
    own = {"TESTCLUSTER_DIR": str(folder), "TESTCLUSTER_API_PORT": str(_free(3)), "TESTCLUSTER_ETCD_PORT": str(_free(2))}
    environment = {**os.environ, **own}
    started = subprocess.run([FIXTURE / "up", "--control-plane"], env=environment, capture_output=True, text=True)
    try:
        assert started.returncode == 0, f"the control plane does not start: {started.stderr}"
        yield Cluster(started.stdout.split()[-1], folder / "cache")
    finally:
        subprocess.run([FIXTURE / "down"], env=environment, check=True)


def _for_tests(found: Cluster) -> Cluster:
    context = found.run("config", "current-context").stdout.strip()
    if not context.startswith(TEST_CONTEXTS):
        wanted = ", ".join(TEST_CONTEXTS)
        leave_out(f"$KUBECONFIG leads to {context!r}, and not to a cluster that may be changed ({wanted} …)")
    return found


@pytest.fixture(scope="session")
def standing(tmp_path_factory) -> Cluster:
    kubeconfig = os.environ.get("KUBECONFIG", "") or (str(STANDING) if STANDING.exists() else "")
    if not kubeconfig:
        leave_out(WITHOUT_NODE)
    found = _for_tests(Cluster(kubeconfig, tmp_path_factory.mktemp("standing")))
    nodes = found.run("get", "nodes", "-o", "jsonpath={.items[*].status['conditions','images']}").stdout
    if f"serveplane/controller:{VERSION}" not in nodes or not re.search(r'"status":"True","type":"Ready"', nodes):
        leave_out(WITHOUT_NODE)
    return found


def _free(ports: int) -> int:
    """The first of so many ports in a row that nobody listens on, below those that the kernel gives away by itself."""
    while True:
        first = random.randrange(20_000, 32_000)
        if all(_is_free(first + more) for more in range(ports)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(scope="module")
def kinds(cluster: Cluster, tmp_path_factory) -> Iterator[Cluster]:
    """The cluster with our kinds, and nothing else of ours: a release of our chart is taken away, and put back in the end.

    The kinds stay: with them would go all their objects.
    """
    if cluster.here and cluster.run("get", "isvc").returncode:
        cluster.memory_without_kinds = cluster.memory()
    cluster.kubectl("apply", "-f", str(CRDS))
    names = [f"crd/{path.stem.partition('_')[2]}.serving.kserve.io" for path in CRDS.iterdir()]
    # kubectl gives up on a CRD that has no conditions at all yet
    end = time.monotonic() + 60
    while (done := cluster.run("wait", "--for=condition=Established", "--timeout=60s", *names)).returncode:
        assert time.monotonic() < end, done.stderr
    with _without_release(cluster, tmp_path_factory.mktemp("values")):
        yield cluster


@contextmanager
def _without_release(cluster: Cluster, folder: Path) -> Iterator[None]:
    if not cluster.kubectl("get", "secrets", "-A", "-l", "owner=helm", "-o", "name"):
        yield
        return
    listed = json.loads(helm("list", "-A", "-o", "json", kubeconfig=cluster.kubeconfig))
    there = [one for one in listed if one["chart"].rpartition("-")[0] == CHART.name]
    for one in there:
        place = [one["name"], "-n", one["namespace"]]
        (folder / one["name"]).write_text(helm("get", "values", *place, "-o", "json", kubeconfig=cluster.kubeconfig))
        # foreground: a pod of its outlives a Deployment by the moments in which it ends
        helm("uninstall", *place, "--wait", "--cascade", "foreground", kubeconfig=cluster.kubeconfig)
        cluster.kubectl("-n", one["namespace"], "wait", "--for=delete", "pod", "-l", OF_CONTROLLER, "--timeout=60s")
    yield
    for one in there:
        place = [one["name"], CHART, "-n", one["namespace"], "-f", folder / one["name"]]
        helm("install", *place, "--wait", kubeconfig=cluster.kubeconfig)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own; it ends in the background."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
