"""The rules of the CRDs, in CEL: what the API server refuses by itself, in the words of `deployer/spec/validation.py`.

They are those rules of several fields that a schema can know of; annotations, for one, are none of its business.  What a rule
may cost is counted for the largest object there could be, so that lists and texts in them need a bound (`crd._BOUNDS`).
"""

from dataclasses import dataclass
from typing import Any

from deployer.spec.formats import LEGACY_KEYS, SCHEMES
from deployer.spec.schema import SERVER_CONTAINER


@dataclass(frozen=True)
class Rule:
    """A CEL rule.  `message` is text; one with "%d" in it gets the numbers of `shown`."""

    rule: str
    message: str
    at: str = ""
    """The field that the mistake is told of, relative to the rule's object."""
    shown: tuple[str, ...] = ()

    def schema(self) -> dict[str, Any]:
        text: dict[str, Any] = {"message": self.message}
        if self.shown:
            # `message` stays for readers of the CRD, without numbers
            text = {
                "message": self.message.replace("%d", "…"),
                "messageExpression": f"{self.message!r}.format([{', '.join(self.shown)}])",
            }
        return {"rule": self.rule, **text, **({"fieldPath": f".{self.at}"} if self.at else {})}


def _has(*names: str) -> str:
    return ", ".join(f"has(self.{name})" for name in names)


_KEYS = ("model", *LEGACY_KEYS)
_NOT_A_CANARYS = ("maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling", "canaryTrafficPercent")

SCALING = (
    Rule(
        "!has(self.maxReplicas) || self.maxReplicas == 0 || !has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
        "found %d, wanted minReplicas (%d) or more; raise it, or lower that",
        "maxReplicas",
        ("self.maxReplicas", "self.minReplicas"),
    ),
    Rule(
        "!has(self.scaleMetricType) || (has(self.scaleMetric) && self.scaleMetric in ['concurrency', 'rps']"
        " ? self.scaleMetricType == 'AverageValue' : self.scaleMetricType != 'Value')",
        "wanted Utilization or AverageValue for cpu and memory; leave it out for concurrency and rps: numbers per replica",
        "scaleMetricType",
    ),
    Rule(
        "!has(self.scaleTarget) || self.scaleTarget <= 100 || (has(self.scaleMetric) && self.scaleMetric != 'cpu')"
        " || (has(self.scaleMetricType) && self.scaleMetricType != 'Utilization')",
        "found %d, wanted a whole number from 1 to 100: percent of the CPU that a replica asks for",
        "scaleTarget",
        ("self.scaleTarget",),
    ),
    Rule(
        "!has(self.scaleMetric) || !has(self.autoScaling) || !has(self.autoScaling.metrics)"
        " || self.autoScaling.metrics.size() == 0",
        "scaleMetric and autoScaling.metrics exclude each other; keep one of them",
        "autoScaling",
    ),
)
ONE_SERVER = (
    Rule(
        f"[{_has(*_KEYS)}].filter(given, given).size() <= 1",
        "a predictor serves one model; keep one of model and the keys of frameworks, best model",
    ),
    Rule(
        f"!has(self.model) || !has(self.containers) || !self.containers.exists(c, has(c.name) && c.name == '{SERVER_CONTAINER}')",
        f"a predictor has either a model or a container {SERVER_CONTAINER} of its own; leave one out, "
        "or put the container's fields under model to change the runtime's container",
        "containers",
    ),
    Rule(
        "!has(self.model) || !has(self.model.storageUri) || !has(self.storageUris) || self.storageUris.size() == 0",
        "storageUris and model.storageUri exclude each other; put the one into the list",
        "storageUris",
    ),
    Rule(
        "!has(self.workerSpec)",
        "a model over several machines is not supported; leave it out and give one machine the resources",
        "workerSpec",
    ),
)
SOMETHING_TO_RUN = Rule(
    f"[{_has(*_KEYS, 'containers')}].exists(given, given)",
    "there is nothing to run; give it a model, such as {modelFormat: {name: sklearn}, storageUri: s3://models/iris.skops}, "
    "or containers of your own",
)
ONLY_STABLE = Rule(
    f"![{_has(*_NOT_A_CANARYS)}].exists(given, given)",
    f"a canary may not say {', '.join(_NOT_A_CANARYS[:-1])} or {_NOT_A_CANARYS[-1]}; these are the stable predictor's, "
    "under spec.predictor",
)
NO_CANARIES = Rule(
    "!has(self.canaryTrafficPercent)", "only a predictor has canaries; put it under spec.predictor", "canaryTrafficPercent"
)
OWN_CONTAINERS = Rule("has(self.containers)", "there is nothing to run; give it containers, the first of them its server")
ART_OR_CONTAINERS = Rule(
    "has(self.containers) || has(self.art)", "there is nothing to run; give it containers, the first of them its server"
)
_NAMED_SCHEMES = tuple(name for name in SCHEMES if name)
URIS = (
    Rule(
        f"!has(self.storageUri) || self.storageUri.matches('^(/|(?i:{'|'.join(n.replace('+', '[+]') for n in _NAMED_SCHEMES)})://)')",
        f"wanted an absolute path or a URI; known: {', '.join(f'{name}://' for name in _NAMED_SCHEMES)}",
        "storageUri",
    ),
    Rule(
        "!has(self.storageUri) || !has(self.storage) || self.storageUri.matches('^(?i:s3|hdfs|webhdfs)://')",
        "storageUri says already where the model is; leave one of the two out (they go together for s3://)",
        "storage",
    ),
)
CANARIES = (
    Rule(
        "!has(self.canary) || self.canary.size() == 0 || !has(self.predictor.canaryTrafficPercent)",
        "stands beside spec.canary: they are two ways to say the same; keep one of them",
        "predictor.canaryTrafficPercent",
    ),
    Rule(
        "!has(self.canary) || self.canary.map(c, c.trafficPercent).sum() <= 100",
        "the canaries' trafficPercent add up to %d, wanted at most 100: the rest is the stable one's",
        "canary",
        ("self.canary.map(c, c.trafficPercent).sum()",),
    ),
    Rule(
        "!has(self.canary) || self.canary.all(c, self.canary.exists_one(d, d.predictor.name == c.predictor.name)"
        " && !(has(self.predictor.name) && self.predictor.name == c.predictor.name))",
        "two predictors have the same name; give each canary one of its own",
        "canary",
    ),
    Rule(
        "!has(self.canary) || self.canary.all(c, !has(c.predictor.minReplicas)"
        " || c.predictor.minReplicas <= (self.predictor.minReplicas > 1 ? self.predictor.minReplicas : 1))",
        "a canary's minReplicas is above the stable predictor's; leave it out for a share of them",
        "canary",
    ),
)
A_SERVER = Rule(
    f"self.containers.exists(c, c.name == '{SERVER_CONTAINER}') || (has(self.multiModel) && self.multiModel)",
    f"wanted a container called {SERVER_CONTAINER}: the one that serves",
    "containers",
)
