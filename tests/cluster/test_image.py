"""The images in real pods of the cluster that `scripts/cluster up` starts: under the restricted standard, as uid 10001, over
a root that nothing can be written to.  What a builder makes is told apart from it by tests/charts/test_containerfiles.py.
"""

import json
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

from tests.cluster.conftest import VERSION

ROOT = Path(__file__).parents[2]
RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
TMP = {"name": "tmp", "mountPath": "/tmp"}
MODEL = {"name": "model", "mountPath": "/mnt/models", "readOnly": True}
# What is asked of each predictor and what it answers; flags where its model may run code.
PREDICTORS = [
    ("sklearn", "iris.skops", [], [[5.1, 3.5, 1.4, 0.2]], lambda found: found == [0]),
    ("onnx", "mlp.onnx", [], None, lambda found: len(found) == 1),
    ("tensorflow", "tiny.keras", [], None, lambda found: len(found) == 1),
    ("python", "python/model.py", ["--trust_pickle=true"], ["a lovely day"], lambda found: len(found) == 1),
]
INSIDE = """
import importlib.util, json, os, shutil
try:
    open("/opt/serveplane/new", "w")
    root = "is written"
except OSError as error:
    root = error.strerror
tools = [name for name in ("pip", "gcc", "cc", "make", "git", "uv") if shutil.which(name)]
packages = [name for name in ("pip", "hatchling", "uv") if importlib.util.find_spec(name)]
print(json.dumps({"uid": os.getuid(), "root": root, "tools": tools, "packages": packages}))
"""


@pytest.fixture(scope="module")
def place(standing):
    """The cluster, and a namespace that takes only pods of the restricted standard."""
    name = f"images-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    raw = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    standing.kubectl("apply", "-f", "-", stdin=raw)
    yield standing, name
    standing.kubectl("delete", "namespace", name, "--wait=false")


def pod(name, image, *, volumes=(), init=(), **container):
    """A pod of one container; all of its containers are as restricted as ours are."""

    def of(one):
        mounts = [*one.pop("volumeMounts", ()), TMP]
        resources = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}}
        return {
            "image": f"serveplane/{image}:{VERSION}",
            "securityContext": RESTRICTED,
            "resources": resources,
            "volumeMounts": mounts,
        } | one

    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        # the user is the image's own
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [of({"name": "main", **container})],
        "initContainers": [of(dict(one)) for one in init],
        "volumes": [{"name": "tmp", "emptyDir": {}}, *volumes],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def run(place, raw, condition="condition=Ready"):
    cluster, namespace = place
    cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=raw)
    done = cluster.run("-n", namespace, "wait", f"--for={condition}", f"pod/{raw['metadata']['name']}", "--timeout=90s")
    if done.returncode:
        said = cluster.run("-n", namespace, "describe", "pod", raw["metadata"]["name"]).stdout[-1500:]
        logs = cluster.run("-n", namespace, "logs", raw["metadata"]["name"], "--all-containers").stdout[-1500:]
        raise AssertionError(f"{done.stderr}\n{said}\n{logs}")


def ask(place, name, rows):
    """The predictions for rows, or for the model's own example, through a Service."""
    cluster, namespace = place
    ports = [{"port": 80, "targetPort": 8080}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": ports},
    }
    cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=service)
    address = cluster.get("-n", namespace, f"service/{name}")["spec"]["clusterIP"]
    if rows is None:
        (given,) = answer(f"http://{address}/v2/models/m")["inputs"]
        shape = [abs(size) for size in given["shape"]]
        rows = 0.5
        for size in reversed(shape):
            rows = [rows] * size
    return answer(f"http://{address}/v1/models/m:predict", {"instances": rows})["predictions"]


def answer(url, body=None, seconds=20.0):
    """What comes back, once the Service leads anywhere."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, None if body is None else json.dumps(body).encode(), timeout=5) as found:
                return json.load(found)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{url}: {error.code} {error.read().decode()}") from None
        except OSError:
            assert time.monotonic() < end, f"nothing answers at {url}"
            time.sleep(0.1)


@pytest.mark.parametrize(("image", "model", "flags", "rows", "is_right"), PREDICTORS, ids=[one[0] for one in PREDICTORS])
def test_a_predictor_answers_through_a_service(place, image, model, flags, rows, is_right):
    cluster, namespace = place
    name, file = f"m-{image}", ROOT / "examples" / model
    files = [file, *(one for one in file.parent.iterdir() if model.endswith(".py") and one.is_file() and one != file)]
    cluster.kubectl("-n", namespace, "create", "configmap", name, *(f"--from-file={one}" for one in files))
    probe = {"httpGet": {"path": "/v2/health/ready", "port": 8080}, "periodSeconds": 1}
    args = ["--model_name=m", f"--model_dir=/mnt/models/{file.name}", *flags]
    volumes = [{"name": "model", "configMap": {"name": name}}]
    run(place, pod(name, image, volumes=volumes, args=args, readinessProbe=probe, volumeMounts=[MODEL]))
    assert is_right(ask(place, name, rows))
    inside = json.loads(cluster.kubectl("-n", namespace, "exec", name, "--", "/opt/serveplane/bin/python", "-P", "-c", INSIDE))
    assert inside == {"uid": 10001, "root": "Read-only file system", "tools": [], "packages": []}


def test_the_storage_initializer_brings_a_model_to_the_predictor_beside_it(place):
    cluster, namespace = place
    cluster.kubectl("-n", namespace, "create", "configmap", "stored", f"--from-file={ROOT / 'examples' / 'iris.skops'}")
    stored = {"name": "stored", "mountPath": "/stored", "readOnly": True}
    models = {"name": "model", "mountPath": "/mnt/models"}
    bring = {
        "name": "storage-initializer",
        "image": f"serveplane/storage-initializer:{VERSION}",
        "args": ["file:///stored/iris.skops", "/mnt/models"],
        "volumeMounts": [stored, models],
    }
    probe = {"httpGet": {"path": "/v2/health/ready", "port": 8080}, "periodSeconds": 1}
    volumes = [{"name": "stored", "configMap": {"name": "stored"}}, {"name": "model", "emptyDir": {}}]
    raw = pod(
        "brought", "sklearn", init=[bring], volumes=volumes, args=["--model_name=m"], readinessProbe=probe, volumeMounts=[models]
    )
    # as the controller makes it: who writes and who reads are one group
    raw["spec"]["securityContext"] |= {"fsGroup": 10001}
    run(place, raw)
    assert ask(place, "brought", [[5.1, 3.5, 1.4, 0.2]]) == [0]


def test_a_model_that_is_not_there_ends_the_storage_initializer_with_a_line_of_why(place):
    cluster, namespace = place
    raw = pod(
        "missing",
        "storage-initializer",
        args=["file:///nowhere/model", "/tmp/models"],
        terminationMessagePolicy="FallbackToLogsOnError",
    )
    run(place, raw, "jsonpath={.status.phase}=Failed")
    (status,) = cluster.get("-n", namespace, "pod/missing")["status"]["containerStatuses"]
    assert status["state"]["terminated"]["exitCode"] == 1
    assert "/nowhere/model" in status["state"]["terminated"]["message"]


def test_the_controller_starts_in_its_image(place):
    cluster, namespace = place
    run(place, pod("controller", "controller", args=["--help"]), "jsonpath={.status.phase}=Succeeded")
    assert "SERVEPLANE_CONFIG_NAMESPACE" in cluster.kubectl("-n", namespace, "logs", "controller")
