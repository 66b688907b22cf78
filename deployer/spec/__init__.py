"""InferenceService: from what a person wrote to a value that can't be wrong, or to all that is wrong with it at once.

    text → `documents` → object → `parse` → InferenceService → `as_object` → object

The models are in `schema.py`, reading and writing them in `objects.py`, the rules in `validation.py` and `annotations.py`,
what has no effect where in `notices.py`; other rooms import all of it from here.
"""

from collections.abc import Collection
from itertools import islice

from deployer.errors import Mistake, SpecError, show
from deployer.spec.annotations import (
    AUTOSCALER_CLASS,
    DEPLOYMENT_MODE,
    MIRROR_PERCENT,
    ROUTE_HEADER,
    SHA256,
    STANDARD_MODES,
    STOP,
    TRUST_PICKLE,
    VISIBILITY,
)
from deployer.spec.documents import documents
from deployer.spec.formats import FORMATS, format_of
from deployer.spec.notices import Notice, notices
from deployer.spec.objects import MAX_MISTAKES, as_object, pinned, predictor_object, read_service
from deployer.spec.pods import quantity
from deployer.spec.schema import (
    API_VERSION,
    KIND,
    Batcher,
    Canary,
    Component,
    InferenceService,
    Logger,
    Metadata,
    Model,
    ModelFormat,
    Predictor,
    Spec,
    explicit,
    is_custom,
    trusts,
)
from deployer.spec.validation import check, hide

__all__ = [
    "API_VERSION",
    "AUTOSCALER_CLASS",
    "DEPLOYMENT_MODE",
    "FORMATS",
    "KIND",
    "MIRROR_PERCENT",
    "ROUTE_HEADER",
    "SHA256",
    "STANDARD_MODES",
    "STOP",
    "TRUST_PICKLE",
    "VISIBILITY",
    "Batcher",
    "Canary",
    "Component",
    "InferenceService",
    "Logger",
    "Metadata",
    "Mistake",
    "Model",
    "ModelFormat",
    "Notice",
    "Predictor",
    "Spec",
    "SpecError",
    "as_object",
    "check_update",
    "documents",
    "explicit",
    "format_of",
    "is_custom",
    "notices",
    "parse",
    "pinned",
    "predictor_object",
    "quantity",
    "trusts",
]


def parse(raw: object, *, formats: Collection[str] | None = FORMATS) -> InferenceService:
    """The service that an object describes, with KServe's defaults; SpecError with every mistake in it, and nothing else.

    `formats` are the model formats that may be named: where users have runtimes of their own, theirs too
    (`runtimes.formats_of`), and None for any, of an object that was taken before.  The predictor of each canary is whole:
    what its entry leaves out is the stable one's.
    """
    service, found = read_service(raw)
    known = {mistake.path for mistake in found.mistakes}
    mistakes = [*found.mistakes, *islice(hide(check(service, formats), known), MAX_MISTAKES)]
    if mistakes:
        raise SpecError(found.as_written(mistakes))
    return service


def check_update(old: InferenceService, new: InferenceService) -> None:
    """SpecError where `new` may not take the place of `old`."""
    mistakes = []
    mode = new.metadata.annotations.get(DEPLOYMENT_MODE, "Standard")
    before = old.metadata.annotations.get(DEPLOYMENT_MODE, "Standard")
    if (mode in STANDARD_MODES) != (before in STANDARD_MODES):
        mistakes.append(
            Mistake(
                f'metadata.annotations["{DEPLOYMENT_MODE}"]',
                f"found {show(mode)}, and the service runs as {show(before)}; the mode of a service can't change: "
                "delete it and make it again",
            )
        )
    mine, theirs = new.spec.predictor, old.spec.predictor
    same_server = (mine.model, mine.containers, mine.storage_uris) == (theirs.model, theirs.containers, theirs.storage_uris)
    if mine.name != theirs.name and same_server:
        mistakes.append(
            Mistake(
                "spec.predictor.name",
                f"found {show(mine.name)}, and it was {show(theirs.name)}; a predictor is renamed only together with its model, "
                "when a canary takes its place: change the model too, or keep the name",
            )
        )
    if mistakes:
        raise SpecError(mistakes)
