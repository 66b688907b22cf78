"""What would be made of a new service on a cluster that has said nothing else: `serve render --target kubernetes`."""

from collections.abc import Sequence

from deployer.kubernetes.rendering.credentials import ServiceAccountSeen
from deployer.kubernetes.rendering.labels import Object
from deployer.kubernetes.rendering.layout import layout
from deployer.kubernetes.rendering.objects import render
from deployer.kubernetes.rendering.settings import Settings
from deployer.observed import Observed
from deployer.plan import Abilities, plan
from deployer.runtimes import ServingRuntime
from deployer.spec import InferenceService


def preview(service: InferenceService, installed: Sequence[ServingRuntime]) -> list[Object]:
    """By the chart's own settings, in the order in which they are applied; nobody owns them yet."""
    planned = plan(service, Observed(), installed, Abilities(fetches=False, pods=True))
    laid = layout(planned.name, planned, {}, {}, service.spec.predictor.name or "")
    made = render(Settings(), service, planned, laid, lambda namespace, name: ServiceAccountSeen(name))
    for one in made:
        del one["metadata"]["ownerReferences"]
    return made
