"""The verbs that look: get, status, predict, logs, render.  They change nothing."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from deployer import spec
from deployer.cli import waiting
from deployer.cli.options import (
    Context,
    Files,
    Gateway,
    Namespace,
    Output,
    Service,
    TargetOption,
    Where,
    client_for,
    documents,
    is_runtime,
    placed,
)
from deployer.cli.output import Form, age, condition, errors, say, show
from deployer.client import Client
from deployer.errors import Conflict, DeployerError, SpecError
from deployer.local import process
from deployer.observed import ModelSeen, Observed
from deployer.plan import Abilities, plan
from deployer.runtimes import ServingRuntime, formats_of, parse_runtime

# How long `serve predict` waits for processes that are on their way back.
STARTING_SECONDS = 60.0


def get(
    name: Annotated[str, typer.Argument(metavar="[NAME]", show_default=False)] = "",
    namespace: Namespace = "",
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Services of every namespace.")] = False,
    target: TargetOption = Where.local,
    context: Context = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on and print each service that changes.")] = False,
    output: Output = Form.table,
) -> None:
    """List services, or show one."""
    with errors():
        client = client_for(target, context)
        namespace = namespace or client.namespace

        def look() -> list[dict[str, Any]]:
            return [client.get(namespace, name)] if name else client.listed(None if all_namespaces else namespace)

        seen = look()
        show(seen, output, single=bool(name))
        while watch:
            time.sleep(0.5)
            before, seen = seen, look()
            for changed in (one for one in seen if one not in before):
                show([changed], output, single=True)


def status(
    name: Service,
    namespace: Namespace = "",
    target: TargetOption = Where.local,
    context: Context = "",
    output: Output = Form.table,
) -> None:
    """What a service is doing, and in one line why where it is not Ready."""
    with errors():
        client = client_for(target, context)
        namespace = namespace or client.namespace
        service = client.get(namespace, name)
        if output not in (Form.table, Form.wide):
            show([service], output, single=True)
            return
        out = Console(highlight=False)
        found, ready = service.get("status", {}), condition(service)
        why = "" if ready.get("status") == "True" else f"  {ready.get('reason', '')}: {ready.get('message', '')}"
        out.print(f"{name}  Ready={ready.get('status', 'Unknown')}{why}", soft_wrap=True, markup=False)
        out.print(f"  url      {found.get('url', '')}\n  address  {found.get('address', {}).get('url', '')}", soft_wrap=True)
        traffic = {t["revisionName"]: t for t in found.get("components", {}).get("predictor", {}).get("traffic", ())}
        running = client.replicas(namespace, name)
        for revision in client.revisions(namespace, name):
            mine = [one for one in running if one.revision == revision["name"]]
            if not mine and revision["name"] not in traffic:
                continue
            percent = traffic.get(revision["name"], {}).get("percent", 0)
            bar = "█" * round(percent / 5)
            ready_now = sum(one.is_ready for one in mine)
            out.print(
                f"  {revision['name']}  {percent:3d} % {bar:20}  {ready_now}/{len(mine)} ready  {revision['template']['uri']}",
                soft_wrap=True,
                markup=False,
            )
        for one in found.get("conditions", ()):
            text = ": ".join(t for t in (one.get("reason"), one.get("message")) if t)
            out.print(
                f"  {one['type']:22} {one['status']:8} {age(one['lastTransitionTime']):>5}  {text}", soft_wrap=True, markup=False
            )


def predict(
    name: Service,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="A request (V1 or V2 JSON), @FILE, or - for stdin; by default one is made up.",
            show_default=False,
        ),
    ] = None,
    namespace: Namespace = "",
    target: TargetOption = Where.local,
    context: Context = "",
    gateway: Gateway = "",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="NAME: VALUE, such as serve-revision: candidate.")
    ] = None,
    output: Annotated[Form, typer.Option("--output", "-o", help="json: the whole answer.")] = Form.table,
) -> None:
    """Send a request to a service; without --data one that its model accepts."""
    with errors():
        client = client_for(target, context, gateway)
        namespace = namespace or client.namespace
        service = client.get(namespace, name)
        url = service.get("status", {}).get("url")
        if condition(service, "IngressReady").get("status") != "True" or not url:
            ready = condition(service)
            raise Conflict(f"{name} does not answer yet: {ready.get('reason', '')}: {ready.get('message', '')}")
        if not any(one.is_ready for one in client.replicas(namespace, name)):
            # it served before, and this very command may have started the platform again
            waiting.until_ready(client, service, STARTING_SECONDS)
        headers = dict(map(_header, header or ()))
        body = _request_body(client, service, data)
        path = f"/v1/models/{name}:predict" if "instances" in body else f"/v2/models/{name}/infer"
        started = time.monotonic()
        answer = client.ask(service, path, body, headers)
        took = time.monotonic() - started
        if output is Form.json:
            print(json.dumps(answer))
            return
        say(f"POST {client.way(service)}{path}", "dim")
        say(json.dumps(body), "dim")
        print(json.dumps(answer, indent=2) if output is Form.table else yaml.safe_dump(answer, sort_keys=False))
        say(f"{took * 1e3:.1f} ms", "dim")


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":") if ":" in text else text.partition("=")
    if not separator or not name.strip():
        raise SpecError([spec.Mistake("--header", f"found {text!r}, wanted NAME: VALUE, such as 'serve-revision: candidate'")])
    return name.strip(), value.strip()


def example_request(client: Client, service: dict[str, Any]) -> dict[str, Any]:
    """A V2 request that the model accepts, as its own page has it; empty where it has none."""
    page = client.ask(service, "/openapi.json", None, {})
    try:
        content = page["paths"][f"/v2/models/{service['metadata']['name']}/infer"]["post"]["requestBody"]["content"]
        return dict(content["application/json"]["example"])
    except KeyError:
        return {}


def _request_body(client: Client, service: dict[str, Any], data: str | None) -> dict[str, Any]:
    if data is None:
        if not (found := example_request(client, service)):
            raise DeployerError(f"{service['metadata']['name']} has no sample of its inputs; give a request with --data")
        return found
    try:
        text = sys.stdin.read() if data == "-" else Path(data[1:]).read_text() if data.startswith("@") else data
        body = json.loads(text)
    except OSError as error:
        raise SpecError([spec.Mistake("--data", f"{data[1:]} can't be read: {error.strerror}")]) from None
    except ValueError as error:
        raise SpecError([spec.Mistake("--data", f"is no JSON object: {error}")]) from None
    if not isinstance(body, dict):
        raise SpecError([spec.Mistake("--data", 'is no JSON object; wanted {"instances": […]} or {"inputs": […]}')])
    return body


def logs(
    name: Service,
    namespace: Namespace = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines are written.")] = False,
    tail: Annotated[int, typer.Option(min=0, help="Lines of each process; 0: all.")] = 50,
    target: TargetOption = Where.local,
    context: Context = "",
) -> None:
    """What a service's processes wrote, each line behind its process's name."""
    with errors():
        client = client_for(target, context)
        namespace = namespace or client.namespace
        line = ""
        for line in client.logs(namespace, name, tail, follow):
            print(line, flush=follow)
        if not line:
            ready = condition(client.get(namespace, name))
            why = ": ".join(t for t in (ready.get("reason"), ready.get("message")) if t)
            say(f"{name} has written nothing yet{why and f'; {why}'}", "yellow")


def render(file: Files, namespace: Namespace = "", target: TargetOption = Where.local) -> None:
    """Print what becomes of manifests, and change nothing: the plan and what this machine would run, or a cluster's objects."""
    with errors():
        raws = [placed(raw, namespace or "default") for one in file for raw in documents(one)]
        installed = [parse_runtime(raw) for raw in raws if is_runtime(raw)]
        shown: list[Any] = []
        for raw in (raw for raw in raws if not is_runtime(raw)):
            service = spec.parse(raw, formats=formats_of(installed))
            if target is Where.local:
                shown.append(_local_plan(service, installed))
                continue
            from deployer.kubernetes.rendering.preview import preview

            shown += preview(service, installed)
            say(
                f"note: {service.metadata.name}: by the chart's own settings, without asking a cluster; the controller adds a "
                "ControllerRevision for each revision, and owner references",
                "yellow",
            )
            for notice in spec.notices(service, "kubernetes"):
                say(f"note: {service.metadata.name}: {notice.path}: {notice.message}", "yellow")
        for one in shown:
            # by way of JSON: parts that stand in several places are written out in each
            print("---\n" + yaml.safe_dump(json.loads(json.dumps(one)), sort_keys=False), end="")


def _local_plan(service: spec.InferenceService, installed: Sequence[ServingRuntime]) -> dict[str, Any]:
    predictors = [spec.pinned(service).spec.predictor, *(canary.predictor for canary in service.spec.canary)]
    uris = {p.model.storage_uri for p in predictors if p.model and p.model.storage_uri}
    # as if every model were there already, and nothing ran
    observed = Observed(models={uri: ModelSeen("fetched", "unresolved") for uri in uris})
    planned = plan(service, observed, installed, Abilities(process.refuses))
    runs = {r.name: process.command(r.template, planned.name, r.template["uri"], 0, 0) for r in planned.revisions}
    notices = [f"{n.path}: {n.message}" for n in spec.notices(service, "local")]
    shown = {"object": spec.as_object(service), "plan": asdict(planned), "local": runs}
    return shown | ({"withoutEffect": notices} if notices else {})
