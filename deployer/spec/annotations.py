"""Annotations and labels that say how a service is run: which there are, and what they may say.

Ours are under `serving.serveplane.dev/`, where an unknown one is a mistake; KServe's are under `serving.kserve.io/`, where an
unknown one is passed on to the pods, as KServe does, and reported.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from deployer.errors import Mistake, did_you_mean, show, under

OURS = "serving.serveplane.dev/"
TRUST_PICKLE = f"{OURS}trust-pickle"
SHA256 = f"{OURS}sha256"
ROUTE_HEADER = f"{OURS}route-header"
MIRROR_PERCENT = f"{OURS}mirror-percent"

KSERVE = "serving.kserve.io/"
STOP = f"{KSERVE}stop"
DEPLOYMENT_MODE = f"{KSERVE}deploymentMode"
AUTOSCALER_CLASS = f"{KSERVE}autoscalerClass"
METRICS = f"{KSERVE}metrics"
TARGET_UTILIZATION = f"{KSERVE}targetUtilizationPercentage"
VISIBILITY = "networking.kserve.io/visibility"
STANDARD_MODES = ("Standard", "RawDeployment")

# "" where the value is fine, else what was wanted and what to do.
Rule = Callable[[str], str]


def _one_of(*choices: str) -> Rule:
    def check(value: str) -> str:
        return "" if value in choices else f"wanted {' or '.join(choices)}{did_you_mean(value, choices)}"

    return check


def _number(low: int, high: int) -> Rule:
    def check(value: str) -> str:
        fits = re.fullmatch(r"\d{1,6}", value) is not None and low <= int(value) <= high
        return "" if fits else f"wanted a whole number from {low} to {high}, in quotes"

    return check


def _mode(value: str) -> str:
    if value in STANDARD_MODES:
        return ""
    if value in ("Serverless", "Knative"):
        return (
            "this platform works without Knative, and canaries and autoscaling work without it too; "
            "write Standard, or leave the annotation out"
        )
    if value == "ModelMesh":
        return "ModelMesh is not supported; write Standard, or leave the annotation out"
    return f"wanted Standard{did_you_mean(value, STANDARD_MODES)}"


# A header's name is a token of RFC 9110; a pseudo-header would route by something else.
_HEADER = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]+)=([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)")


def _header(value: str) -> str:
    found = _HEADER.fullmatch(value)
    if found is None:
        return "wanted NAME=VALUE, a request header and what it says, such as x-candidate=yes"
    if found[1].lower() in ("host", "connection", "content-length", "transfer-encoding"):
        return f"the header {found[1]!r} belongs to the transport; choose one of your own, such as x-candidate=yes"
    return ""


def _checksum(value: str) -> str:
    return "" if re.fullmatch("[0-9A-Fa-f]{64}", value) else "wanted 64 hex digits, as sha256sum prints them for the model's file"


_TRUTH = _one_of("true", "false")
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        TRUST_PICKLE: _TRUTH,
        SHA256: _checksum,
        ROUTE_HEADER: _header,
        MIRROR_PERCENT: _number(0, 100),
        STOP: _TRUTH,
        DEPLOYMENT_MODE: _mode,
        AUTOSCALER_CLASS: _one_of("hpa", "keda", "external", "none"),
        METRICS: _one_of("cpu", "memory", "concurrency", "rps"),
        TARGET_UTILIZATION: _number(1, 100),
        f"{KSERVE}enable-prometheus-scraping": _TRUTH,
        f"{KSERVE}enable-metric-aggregation": _TRUTH,
        f"{KSERVE}enable-tag-routing": _TRUTH,
        f"{KSERVE}disable-auto-update": _TRUTH,
        f"{KSERVE}disable-localmodel": _TRUTH,
        "storage.kserve.io/readonly": _TRUTH,
        "prometheus.kserve.io/port": _number(1, 65535),
    }
)
# KServe's that are passed on as they are.
PASSED_ON = frozenset(
    KSERVE + name
    for name in (
        "storageSecretName",
        "nodegroup",
        "gke-accelerator",
        "gpu-resource-types",
        "exp-dra-driver",
        "exp-dra-device-class",
        "storage-initializer-uid",
        "server-type",
        "logger-secret-name",
        "logger-secret-path",
        "logger-secret-file",
    )
)
_OUR_KEYS = tuple(key for key in RULES if key.startswith(OURS))
_KSERVE_KEYS = (*(key for key in RULES if key.startswith(KSERVE)), *PASSED_ON)


def check_annotations(path: str, annotations: Mapping[str, str]) -> Iterator[Mistake]:
    for key, value in annotations.items():
        if key in RULES:
            if wrong := RULES[key](value):
                yield Mistake(under(path, key), f"found {show(value)}, {wrong}")
        elif key.startswith(OURS):
            yield Mistake(
                under(path, key), f"there is no such annotation{did_you_mean(key, _OUR_KEYS)}; known: {', '.join(_OUR_KEYS)}"
            )


def check_labels(path: str, labels: Mapping[str, str]) -> Iterator[Mistake]:
    visibility = labels.get(VISIBILITY)
    if visibility is not None and visibility != "cluster-local":
        yield Mistake(under(path, VISIBILITY), f"found {show(visibility)}, wanted cluster-local; leave it out for a public route")
    for key, value in labels.items():
        if not re.fullmatch(r"(?:[A-Za-z0-9](?:[\w.-]{0,61}[A-Za-z0-9])?)?", value, re.ASCII):
            yield Mistake(
                under(path, key),
                f"found {show(value)}, wanted a label's value: at most 63 letters, digits, '-', '_' and '.', "
                "a letter or digit first and last; other text fits into an annotation",
            )


def unknown_kserve_annotation(key: str) -> str:
    """A hint for a key under KServe's prefix that nothing reads; empty for any other key."""
    if not key.startswith(KSERVE) or key in _KSERVE_KEYS or key.startswith(f"{KSERVE}exp-"):
        return ""
    return f"nothing reads this annotation{did_you_mean(key, _KSERVE_KEYS)}"
