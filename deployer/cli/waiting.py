"""Waiting for a service, with a line on stderr for everything that changes and one that says why it is stuck."""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from deployer.cli.output import TIMED_OUT, condition, err, give_up, say
from deployer.client import Client

LOOK_EVERY = 0.1
NOBODY = (
    "no controller has looked at it; is one there? kubectl get deployments -A -l app.kubernetes.io/part-of=serveplane "
    "shows it, and helm install serveplane charts/serveplane -n kserve --create-namespace makes one"
)
# Reasons that no waiting mends.
FINAL = ("BlockedByFailedLoad", "InvalidSpec")


def until_ready(client: Client, applied: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """The service once it is Ready; typer.Exit 1 where it can't become that, 4 where it did not in time."""
    meta = applied["metadata"]
    started = time.monotonic()
    said = ""
    with err.status(f"waiting for {meta['name']} …") if err.is_terminal else contextlib.nullcontext() as shown:
        while True:
            service = client.get(meta["namespace"], meta["name"])
            status = service.get("status", {})
            ready = condition(service)
            seen = status.get("observedGeneration") == service["metadata"]["generation"]
            if seen:
                if ready.get("status") == "True":
                    return service
                failed = status.get("modelStatus", {}).get("lastFailureInfo", {})
                if status.get("modelStatus", {}).get("transitionStatus") in FINAL and failed:
                    raise give_up(f"{meta['name']}: {failed['reason']}: {failed['message']}{_way_back(client, service)}")
            text = ": ".join(t for t in (ready.get("reason"), ready.get("message")) if t)
            if ready.get("reason") == "InvalidSpec" and ready.get("status") == "False":
                raise give_up(f"{meta['name']}: {text}")
            if seen and text and text != said:  # what was so before this change is no news of it
                if shown is not None and ready.get("reason") == "ModelFetching":
                    # written over, so that a long download does not fill the terminal
                    shown.update(escape(text))
                else:
                    say(f"{time.monotonic() - started:5.1f} s  {text}", "dim")
                said = text
            if time.monotonic() - started > timeout:
                why = text if seen or client.platform == "local" else NOBODY
                raise give_up(f"{meta['name']} is not Ready after {timeout:g} s: {why or 'nothing is known yet'}", TIMED_OUT)
            time.sleep(LOOK_EVERY)


def _way_back(client: Client, service: Mapping[str, Any]) -> str:
    """What to do about a change that does not come into force, "" where nothing served before it."""
    component = service.get("status", {}).get("components", {}).get("predictor", {})
    if component.get("latestRolledoutRevision", "") in ("", component.get("latestCreatedRevision")):
        return ""
    where = " --target kubernetes" if client.platform == "kubernetes" else ""
    name = service["metadata"]["name"]
    return f"\nwhat served before goes on, and the spec is changed; to take that back: serve rollback {name}{where}"


def until_gone(client: Client, namespace: str, name: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while client.runs(namespace, name):
        if time.monotonic() > deadline:
            raise give_up(f"{name}: its replicas are still finishing after {timeout:g} s", TIMED_OUT)
        time.sleep(LOOK_EVERY)
