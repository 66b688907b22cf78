"""What the cluster's API server asks before it takes an object, and the answers: pure, an AdmissionReview in, another out.

`default` writes an InferenceService in its canonical form: KServe's older keys become `model`.  `review` refuses what can't
be carried out, with every mistake, and warns of what has no effect on a cluster.  A model format that nothing serves is a
warning too: its ServingRuntime may be the next object of the same manifest.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from deployer import runtimes, spec
from deployer.errors import DeployerError, Mistake, NoRuntime, SpecError
from deployer.runtimes import ServingRuntime
from deployer.spec import InferenceService, Notice
from deployer.spec.formats import LEGACY_KEYS

Notices = Callable[[InferenceService], Sequence[Notice]]
VERSION = "admission.k8s.io/v1"
GROUP = "serving.kserve.io"


class NoReview(DeployerError):
    """The request is no AdmissionReview."""


def of_any_cluster(service: InferenceService) -> Sequence[Notice]:
    """What has no effect, whatever the cluster is like."""
    return spec.notices(service, "kubernetes")


def review(raw: object, installed: Sequence[ServingRuntime] = (), notices: Notices = of_any_cluster) -> dict[str, Any]:
    """Whether the object may be made or changed.  `installed` are the runtimes of its namespace and of all, `notices` gives
    what to warn of.

    NoReview where `raw` is none.
    """
    request = _request(raw)
    if not _to_be_judged(request):
        return _answer(request)
    try:
        if request["kind"]["kind"] == spec.KIND:
            return _answer(request, warnings=_service(request, installed, notices))
        runtimes.check_conflicts(runtimes.parse_runtime(_object(request)), installed)
    except SpecError as error:
        return _answer(request, refused=error.mistakes)
    return _answer(request)


def default(raw: object) -> dict[str, Any]:
    """The object in its canonical form, as a patch; none where it has it already, or where `review` is going to refuse it.

    NoReview where `raw` is none.
    """
    request = _request(raw)
    if request["kind"].get("kind") != spec.KIND or not _to_be_judged(request):
        return _answer(request)
    given = _object(request)
    try:
        wanted = spec.as_object(spec.parse(_without_echo(given, request.get("oldObject")), formats=None)).get("spec", {})
    except SpecError:
        return _answer(request)
    return _answer(request, patch=[] if wanted == given["spec"] else [{"op": "replace", "path": "/spec", "value": wanted}])


def namespace(raw: object) -> str:
    """Whose runtimes `review` has to know of; "" for an object of all namespaces, and for what is no AdmissionReview."""
    request = raw.get("request") if isinstance(raw, dict) else None
    found = request.get("namespace") if isinstance(request, dict) else None
    return found if isinstance(found, str) else ""


def _request(raw: object) -> dict[str, Any]:
    request = raw.get("request") if isinstance(raw, dict) else None
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str) or not isinstance(request.get("kind"), dict):
        raise NoReview(f"wanted an AdmissionReview of {VERSION}, with a request that has uid, kind and object")
    return request


def _to_be_judged(request: Mapping[str, Any]) -> bool:
    """Whether it is one of our objects, made or changed by somebody.

    What was taken once is not judged again, nor is what ends: else a rule that is new would keep an object from being
    labelled, or from going away.
    """
    kind, subject, before = request["kind"], request.get("object"), request.get("oldObject")
    if kind.get("group") != GROUP or kind.get("kind") not in (spec.KIND, *runtimes.KINDS) or request.get("subResource"):
        return False
    if request.get("operation") not in ("CREATE", "UPDATE") or not isinstance(subject, dict):
        return False
    if isinstance(before, dict) and _told(before) == _told(subject):
        return False
    metadata = subject.get("metadata")
    return not (isinstance(metadata, dict) and metadata.get("deletionTimestamp"))


def _told(subject: Mapping[str, Any]) -> list[Any]:
    """The parts of an object that people write."""
    metadata = subject.get("metadata")
    parts = metadata if isinstance(metadata, dict) else {}
    return [subject.get("spec"), parts.get("labels") or {}, parts.get("annotations") or {}]


def _object(request: Mapping[str, Any]) -> dict[str, Any]:
    """The object, in the namespace that it is asked for."""
    subject, place = dict(request["object"]), request.get("namespace")
    metadata = subject.get("metadata")
    if isinstance(metadata, dict) and isinstance(place, str) and place and not metadata.get("namespace"):
        subject["metadata"] = {**metadata, "namespace": place}
    return subject


def _service(request: Mapping[str, Any], installed: Sequence[ServingRuntime], notices: Notices) -> list[str]:
    """What to warn of; SpecError where the service can't be carried out."""
    subject = _object(request)
    service = spec.parse(subject, formats=None)
    before = _before(request)
    if before is not None:
        spec.check_update(before, service)
    return [*map(str, notices(service)), *(_unserved(subject, installed) or _unchosen(service, installed))]


def _before(request: Mapping[str, Any]) -> InferenceService | None:
    """The service as it was; None where it is new, and where it was taken before its mistakes were known."""
    try:
        return spec.parse(request["oldObject"], formats=None) if request.get("oldObject") else None
    except SpecError:
        return None


def _unserved(subject: Mapping[str, Any], installed: Sequence[ServingRuntime]) -> list[str]:
    try:
        spec.parse(subject, formats=runtimes.formats_of(installed))
    except SpecError as error:
        return [str(mistake) for mistake in error.mistakes]
    return []


def _unchosen(service: InferenceService, installed: Sequence[ServingRuntime]) -> list[str]:
    """Predictors that no runtime serves, or not the one that they name."""
    named = {"spec.predictor": service.spec.predictor}
    named |= {f"spec.canary[{at}].predictor": one.predictor for at, one in enumerate(service.spec.canary)}
    found = []
    for path, predictor in named.items():
        if predictor.model is None:
            continue
        try:
            runtimes.choose(predictor, installed)
        except NoRuntime as error:
            found.append(f"{path}.model: {error}")
    return found


def _without_echo(given: dict[str, Any], before: object) -> dict[str, Any]:
    """The object without the `model` that an older key became, where the key is applied again.

    A client that applies knows what it applied last, not what became of it: it adds the key, and leaves `model` as it was.
    """
    new, old = _predictor(given), _predictor(before)
    keys = [key for key in LEGACY_KEYS if key in new]
    if len(keys) != 1 or "model" not in new or keys[0] in old or new["model"] != old.get("model"):
        return given
    predictor = {key: value for key, value in new.items() if key != "model"}
    return {**given, "spec": {**given["spec"], "predictor": predictor}}


def _predictor(subject: object) -> Mapping[str, Any]:
    for key in ("spec", "predictor"):
        subject = subject.get(key) if isinstance(subject, dict) else None
    return subject if isinstance(subject, dict) else {}


def _answer(
    request: Mapping[str, Any], refused: Iterable[Mistake] = (), warnings: Sequence[str] = (), patch: Sequence[Any] = ()
) -> dict[str, Any]:
    response: dict[str, Any] = {"uid": request["uid"], "allowed": True}
    mistakes = tuple(refused)
    if mistakes:
        causes = [{"reason": "FieldValueInvalid", "field": one.path, "message": one.message} for one in mistakes]
        kind, name = request["kind"], request.get("name")
        details = {"group": GROUP, "kind": kind.get("kind", ""), "name": name if isinstance(name, str) else "", "causes": causes}
        message = "\n".join(map(str, mistakes))
        status = {"status": "Failure", "code": 422, "reason": "Invalid", "message": message, "details": details}
        response |= {"allowed": False, "status": status}
    if warnings:
        response["warnings"] = list(warnings)
    if patch:
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(list(patch)).encode()).decode()}
    return {"apiVersion": VERSION, "kind": "AdmissionReview", "response": response}
