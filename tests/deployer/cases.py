"""Golden cases: `NAME.in.yaml` → the service, and what was seen of it; and the files that come of one.

`NAME.in.yaml` has two documents: the InferenceService, and what was seen of it (`revisions` by ready replicas, `models`
by digest, `weights`, `history`).
"""

import dataclasses
import os
from pathlib import Path

import yaml

from deployer import spec
from deployer.observed import Failure, History, ModelSeen, Observed, RevisionSeen
from deployer.plan import Abilities, plan

FOLDER = Path(__file__).parent / "golden"


def cases(folder=FOLDER):
    return sorted(p.name.removesuffix(".in.yaml") for p in folder.glob("*.in.yaml"))


def documents(case, folder=FOLDER):
    return tuple(yaml.safe_load_all((folder / f"{case}.in.yaml").read_text()))


def read(case, folder=FOLDER, abilities=Abilities()):  # noqa: B008
    """The service, and what was seen of it.

    Revisions of the input are templates by the predictor they came from: a first plan of that predictor gives the hash.
    """
    service, seen = documents(case, folder)
    models = {
        uri: ModelSeen(**m, failure=None) if "failure" not in m else ModelSeen(m["state"], failure=Failure(**m["failure"]))
        for uri, m in seen.get("models", {}).items()
    }
    revisions = []
    for number, one in enumerate(seen.get("revisions", ()), 1):
        meta = {k: v for k, v in service["metadata"].items() if k != "annotations"}
        before = {**service, "metadata": meta, "spec": {"predictor": one["predictor"]}}
        (made,) = plan(spec.parse(before), Observed(models=models), abilities=abilities).revisions
        failure = Failure(**one["failure"]) if "failure" in one else None
        name = made.name[:-5] + f"{number:05d}"
        revisions.append(RevisionSeen(name, number, made.hash, made.template, one["ready"], one["ready"], one["ready"], failure))
    url = f"http://127.0.0.1:8085/serving/default/{service['metadata']['name']}"
    observed = Observed(
        tuple(revisions), models, seen.get("weights", {}), History(**seen.get("history", {})), url, "http://127.0.0.1:20000"
    )
    return service, observed


def plain(value):
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


class Whole(yaml.SafeDumper):
    """What is the same twice is written twice: a person reads it."""

    def ignore_aliases(self, data):
        return True


def check(file, text):
    """Whether a golden file says this; with UPDATE_GOLDEN it is made to."""
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), f"{file.name}: UPDATE_GOLDEN=1 writes it anew"
