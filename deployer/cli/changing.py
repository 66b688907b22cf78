"""The verbs that change services: deploy, apply, promote, rollback, delete."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deployer import changes, spec
from deployer.cli import waiting
from deployer.cli.options import (
    Context,
    Files,
    Namespace,
    Output,
    Service,
    TargetOption,
    Timeout,
    Wait,
    Where,
    client_for,
    documents,
    is_runtime,
    placed,
)
from deployer.cli.output import Form, condition, errors, give_up, say, show
from deployer.client import Client
from deployer.errors import DeployerError, NotFound, SpecError
from deployer.runtimes import formats_of, parse_runtime


def deploy(
    model: Annotated[
        str, typer.Argument(metavar="MODEL_URI", help="A file, a folder, model.py:Class, or a URI.", show_default=False)
    ],
    name: Annotated[str, typer.Option(help="The service's name; by default from the file's.", show_default=False)] = "",
    canary: Annotated[
        int | None,
        typer.Option(
            min=0, max=100, help="Percent of the requests for this model, the rest for the one before.", show_default=False
        ),
    ] = None,
    min_replicas: Annotated[int | None, typer.Option(min=1, help="Fewest processes.", show_default=False)] = None,
    max_replicas: Annotated[int | None, typer.Option(min=1, help="Most processes.", show_default=False)] = None,
    format: Annotated[
        str, typer.Option(help="sklearn, onnx, tensorflow, python; by default by looking.", show_default=False)
    ] = "",
    runtime: Annotated[str | None, typer.Option(help="A ServingRuntime by name.", show_default=False)] = None,
    trust_pickle: Annotated[
        bool | None,
        typer.Option(help="Open files that can run code; by default where MODEL_URI is a local path.", show_default=False),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="The checksum that the model's file must have.", show_default=False)
    ] = None,
    request_timeout: Annotated[
        int | None, typer.Option(min=1, help="Seconds that a request may take.", show_default=False)
    ] = None,
    cpu: Annotated[
        str | None, typer.Option(metavar="CPUS", help="Of each replica: 500m, 2. In a cluster.", show_default=False)
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="BYTES", help="Of each replica: 512Mi, 2Gi.", show_default=False)] = None,
    namespace: Namespace = "",
    target: TargetOption = Where.local,
    context: Context = "",
    wait: Wait = True,
    timeout: Timeout = 300.0,
    output: Output = Form.table,
) -> None:
    """Serve MODEL_URI: a service that goes on running, behind one address, and that can be changed without losing a request."""
    with errors():
        uri = _absolute(model, target)
        client = client_for(target, context)
        namespace = namespace or client.namespace
        name = name or _name(uri)
        old = _existing(client, namespace, name)
        format = format or _format(uri, old)
        wish = changes.Wish(
            uri, format, canary, min_replicas, max_replicas, runtime, trust_pickle, request_timeout, sha256, cpu, memory
        )
        if canary is not None and old is None:
            say(f"there is no service {name} yet: this model gets all requests, not {canary} %", "yellow")
        made = changes.deploy(old, namespace, name, wish)
        _finish(client, client.apply(made), wait, timeout, output)


def _existing(client: Client, namespace: str, name: str) -> dict[str, Any] | None:
    try:
        return client.get(namespace, name)
    except NotFound:
        return None


def _absolute(model: str, target: Where) -> str:
    """The URI as who fetches the model can read it; DeployerError where nothing is there, or nothing that a cluster reads."""
    if "://" in model and not model.startswith("file://"):
        return model
    if target is Where.kubernetes:
        raise DeployerError(
            f"{model} is of this machine, and pods can't read it; put the model where they can: https://, s3://, "
            "gs://, az:// or a volume, pvc://CLAIM/PATH"
        )
    if "://" in model:
        return model
    path, colon, name = model.partition(".py:")
    found = Path(path + (".py" if colon else "")).expanduser().absolute()
    if not found.exists():
        raise DeployerError(f"no model found at {model}: there is no such file or folder; check its spelling")
    return str(found) + (f":{name}" if colon else "")


def _format(uri: str, old: Mapping[str, Any] | None) -> str:
    """By looking, and where nothing tells, what the service has served until now."""
    path = Path(uri.removeprefix("file://"))
    inside = [p.name for p in path.rglob("*")] if path.is_dir() else []
    found = spec.format_of(uri, inside)
    before = (old or {}).get("spec", {}).get("predictor", {}).get("model", {}).get("modelFormat", {}).get("name")
    found = found or before
    if found is None:
        raise SpecError(
            [spec.Mistake("MODEL_URI", f"{uri} does not tell what it is; say so with --format sklearn|onnx|tensorflow|python")]
        )
    return found


def _name(uri: str) -> str:
    path = Path(uri.rstrip("/").partition(".py:")[0].partition("#")[0])
    stem = path.name.partition(".")[0]
    if stem in ("model", "saved_model", "") or stem.isdecimal() or ".py:" in uri:
        stem = path.parent.name
    made = "".join(c if c.isalnum() and c.isascii() else "-" for c in stem.lower()).strip("-")
    return made if made[:1].isalpha() else f"model-{made}".rstrip("-")


def _finish(client: Client, applied: dict[str, Any], wait: bool, timeout: float, output: Form) -> None:
    for notice in spec.notices(spec.parse(applied, formats=None), client.platform):
        say(f"note: {notice.path}: {notice.message}", "yellow")
    started = time.monotonic()
    if wait:
        applied = waiting.until_ready(client, applied, timeout)
    if output is not Form.table:
        return show([applied], output, single=True)
    _page(client, applied, time.monotonic() - started if wait else None)
    return None


def _page(client: Client, service: Mapping[str, Any], took: float | None) -> None:
    meta, status = service["metadata"], service.get("status", {})
    out = Console(highlight=False)
    # without --wait, what the status says may be of the spec before
    is_seen = status.get("observedGeneration") == meta["generation"]
    ready = (
        "is ready" + (f" after {took:.1f} s" if took is not None else "")
        if is_seen and condition(service).get("status") == "True"
        else "is on its way"
    )
    out.print(f"\n  {meta['name']} {ready}\n")
    is_local = client.platform == "local"
    if "url" in status:
        first, second = ("one address ", "its own port") if is_local else ("from outside", "from pods   ")
        hint = f"   (gRPC there: metadata serve-service: {meta['namespace']}/{meta['name']})" if is_local else ""
        out.print(f"  {first}  {status['url']}{hint}", soft_wrap=True)
        out.print(f"  {second}  {status['address']['url']}   (HTTP and gRPC, no prefix)", soft_wrap=True)
    for one in status.get("components", {}).get("predictor", {}).get("traffic", ()):
        out.print(f"  {one['percent']:3d} %         {one['revisionName']}")
    flag = f" -n {meta['namespace']}" if meta["namespace"] != client.namespace else ""
    flag += "" if is_local else " --target kubernetes"
    out.print(
        f"\n  Try it:  serve predict {meta['name']}{flag}        see it:  serve status {meta['name']}{flag}\n", soft_wrap=True
    )


def apply(
    file: Files,
    namespace: Namespace = "",
    target: TargetOption = Where.local,
    context: Context = "",
    wait: Wait = False,
    timeout: Timeout = 300.0,
    output: Output = Form.table,
) -> None:
    """Apply InferenceService manifests, as `kubectl apply` does."""
    with errors():
        client = client_for(target, context)
        namespace = namespace or client.namespace
        raws = [placed(raw, namespace) for one in file for raw in documents(one)]
        ours = [raw for raw in raws if is_runtime(raw)]
        raws = [raw for raw in raws if not is_runtime(raw)]
        # all are checked before any is applied; a service may name the formats of a runtime that comes with it
        new = [parse_runtime(raw) for raw in ours]
        for raw in raws:
            there = client.runtimes(_namespace(raw))
            spec.parse(raw, formats=formats_of([*map(parse_runtime, there), *new]))
        for raw in ours:
            client.install(raw)
            say(f"{raw['kind'].lower()}.serving.kserve.io/{raw['metadata']['name']} applied")
        applied = [client.apply(raw) for raw in raws]
        for service in applied:
            for notice in spec.notices(spec.parse(service, formats=None), client.platform):
                say(f"note: {service['metadata']['name']}: {notice.path}: {notice.message}", "yellow")
        if wait:
            applied = [waiting.until_ready(client, service, timeout) for service in applied]
        if output is Form.table:
            for service in applied:
                print(f"inferenceservice.serving.kserve.io/{service['metadata']['name']} applied")
        else:
            show(applied, output, single=len(applied) == 1)


def _namespace(raw: Mapping[str, Any]) -> str:
    meta = raw.get("metadata")
    return str(meta.get("namespace", "default")) if isinstance(meta, dict) else "default"


def promote(
    name: Service,
    canary: Annotated[str | None, typer.Option(help="Which, where the service has several.", show_default=False)] = None,
    namespace: Namespace = "",
    target: TargetOption = Where.local,
    context: Context = "",
    wait: Wait = True,
    timeout: Timeout = 300.0,
    output: Output = Form.table,
) -> None:
    """Give the candidate all requests."""
    _change(name, namespace, target, context, wait, timeout, output, lambda client, old: (changes.promote(old, canary), "known"))


def rollback(
    name: Service,
    to: Annotated[
        str | None, typer.Option(help="A revision, as `serve status` names it, or its number.", show_default=False)
    ] = None,
    namespace: Namespace = "",
    target: TargetOption = Where.local,
    context: Context = "",
    wait: Wait = True,
    timeout: Timeout = 300.0,
    output: Output = Form.table,
) -> None:
    """Give up the candidate; where there is none, go back to the revision before, or to --to."""

    def change(client: Client, old: dict[str, Any]) -> tuple[dict[str, Any], str]:
        made, revision = changes.roll_back(old, client.revisions(old["metadata"]["namespace"], name), to)
        say(f"back to {revision}", "dim")
        return made, revision

    _change(name, namespace, target, context, wait, timeout, output, change)


def _change(
    name: str,
    namespace: str,
    target: Where,
    context: str,
    wait: bool,
    timeout: float,
    output: Form,
    change: Callable[[Client, dict[str, Any]], tuple[dict[str, Any], str]],
) -> None:
    with errors():
        client = client_for(target, context)
        namespace = namespace or client.namespace
        made, content = change(client, client.get(namespace, name))
        _finish(client, client.apply(made, content), wait, timeout, output)


def delete(
    names_: Annotated[list[str] | None, typer.Argument(metavar="NAME...", show_default=False)] = None,
    file: Annotated[list[str] | None, typer.Option("--filename", "-f", help="Delete what a manifest names.")] = None,
    namespace: Namespace = "",
    target: TargetOption = Where.local,
    context: Context = "",
    ignore_not_found: Annotated[bool, typer.Option(help="What is gone already is no error.")] = False,
    wait: Wait = True,
    timeout: Timeout = 60.0,
    output: Output = Form.table,
) -> None:
    """Delete services; requests in flight are answered first."""
    with errors():
        client = client_for(target, context)
        namespace = namespace or client.namespace
        raws = [placed(raw, namespace) for one in file or () for raw in documents(one)]
        wanted = [(namespace, one) for one in names_ or ()]
        wanted += [(raw["metadata"]["namespace"], raw["metadata"]["name"]) for raw in raws if not is_runtime(raw)]
        steps = [partial(client.delete, *one) for one in wanted]
        # after the services, so that none is planned anew because its runtime is gone
        steps += [partial(client.uninstall, raw) for raw in raws if is_runtime(raw)]
        if not steps:
            raise give_up("name a service, or a manifest with -f", 2)
        gone, missing = [], []
        for step in steps:
            try:
                gone.append(step())
            except NotFound as error:
                missing.append(str(error))
        for one in gone if wait else ():
            if not is_runtime(one):
                waiting.until_gone(client, one["metadata"]["namespace"], one["metadata"]["name"], timeout)
        if output is Form.table:
            for one in gone:
                print(f"{one['kind'].lower()}.serving.kserve.io/{one['metadata']['name']} deleted")
        else:
            show(gone, output, single=len(gone) == 1)
        if missing and not ignore_not_found:
            raise NotFound("\n".join(missing))
