"""Helm for the tests: the real one, from the PATH or from where the fixture testmesh builds it."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import yaml

from tests.left_out import leave_out

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "serveplane"
CRDS = ROOT / "charts" / "serveplane-crds"
BUILT = Path(os.environ.get("TESTMESH_CACHE", Path.home() / ".cache" / "testmesh")) / "bin"
LEFT_OUT = "there is no helm. Put it on the PATH, or build it: ../shared/testmesh/install-extras"


def run(*args, kubeconfig="", **options):
    """helm, whatever comes of it."""
    helm = shutil.which("helm", path=os.pathsep.join((os.environ.get("PATH", ""), str(BUILT))))
    if helm is None:
        leave_out(LEFT_OUT)
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig) or os.devnull}
    return subprocess.run([helm, *map(str, args)], env=environment, capture_output=True, text=True, timeout=300, **options)


def helm(*args, kubeconfig="", **options):
    """What it says; AssertionError, with what it complains of, where it fails."""
    done = run(*args, kubeconfig=kubeconfig, **options)
    assert done.returncode == 0, f"helm {' '.join(map(str, args))}: {done.stderr}"
    return done.stdout


def template(values=None, *options, chart=CHART):
    """The objects of the chart with these values, in the release `serveplane` and the namespace `kserve`."""
    return [one for one in yaml.safe_load_all(_templated(yaml.safe_dump(values or {}), options, chart)) if one]


@cache
def _templated(values, options, chart):
    return helm("template", "serveplane", chart, "-n", "kserve", "-f", "-", *options, input=values)
