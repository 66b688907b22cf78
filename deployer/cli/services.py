"""The verbs on services: deploy, apply, get, status, predict, logs, promote, rollback, delete, render."""

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from deployer import changes, names, runtimes, spec
from deployer.cli import waiting
from deployer.cli.output import Form, age, condition, errors, give_up, say, show
from deployer.errors import Conflict, DeployerError, NotFound, SpecError
from deployer.local import state
from deployer.local.client import LocalClient


class Where(StrEnum):
    local = "local"
    kubernetes = "kubernetes"


Namespace = Annotated[str, typer.Option("--namespace", "-n", help="The services' namespace.")]
Output = Annotated[Form, typer.Option("--output", "-o", help="What is printed on stdout.")]
TargetOption = Annotated[Where, typer.Option("--target", help="Where it runs.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is Ready.")]
Timeout = Annotated[str, typer.Option("--timeout", help="How long to wait: 30s, 5m.")]
Service = Annotated[str, typer.Argument(metavar="NAME", help="The service's name.", show_default=False)]


def client_for(target: Where) -> LocalClient:
    if target is Where.kubernetes:
        raise DeployerError("--target kubernetes is not built yet; without it the service runs on this machine")
    return LocalClient(state.find(), lambda text: say(text, "dim"))


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
    request_timeout: Annotated[
        int | None, typer.Option(min=1, help="Seconds that a request may take.", show_default=False)
    ] = None,
    namespace: Namespace = "default",
    target: TargetOption = Where.local,
    wait: Wait = True,
    timeout: Timeout = "5m",
    output: Output = Form.table,
) -> None:
    """Serve MODEL_URI: a service that goes on running, behind one address, and that can be changed without losing a request."""
    with errors():
        uri = _absolute(model)
        wish = changes.Wish(
            uri, format or _format(uri), canary, min_replicas, max_replicas, runtime, trust_pickle, request_timeout
        )
        client = client_for(target)
        name = name or _name(uri)
        if canary is not None and _existing(client, namespace, name) is None:
            say(f"there is no service {name} yet: this model gets all requests, not {canary} %", "yellow")
        made = changes.deploy(_existing(client, namespace, name), namespace, name, wish)
        _finish(client, client.apply(made), wait, timeout, output)


def _existing(client: LocalClient, namespace: str, name: str) -> dict[str, Any] | None:
    try:
        return client.get(namespace, name)
    except NotFound:
        return None


def _absolute(model: str) -> str:
    """The URI as the supervisor, which has another working directory, can read it."""
    if "://" in model:
        return model
    path, colon, name = model.partition(".py:")
    return str(Path(path + (".py" if colon else "")).expanduser().absolute()) + (f":{name}" if colon else "")


def _format(uri: str) -> str:
    path = Path(uri.removeprefix("file://"))
    inside = [p.name for p in path.rglob("*")] if path.is_dir() else []
    found = spec.format_of(uri, inside)
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


def _finish(client: LocalClient, applied: dict[str, Any], wait: bool, timeout: str, output: Form) -> None:
    for notice in spec.notices(spec.parse(applied), "local"):
        say(f"note: {notice.path}: {notice.message}", "yellow")
    started = time.monotonic()
    if wait:
        applied = waiting.until_ready(client, applied, waiting.seconds(timeout))
    if output is not Form.table:
        return show([applied], output, single=True)
    _page(applied, time.monotonic() - started if wait else None)
    return None


def _page(service: Mapping[str, Any], took: float | None) -> None:
    meta, status = service["metadata"], service.get("status", {})
    out = Console(highlight=False)
    ready = (
        "is ready" + (f" after {took:.1f} s" if took is not None else "")
        if condition(service).get("status") == "True"
        else "is on its way"
    )
    out.print(f"\n  {meta['name']} {ready}\n")
    if "url" in status:
        out.print(
            f"  one address   {status['url']}   (gRPC there: metadata serve-service: {meta['namespace']}/{meta['name']})",
            soft_wrap=True,
        )
        out.print(f"  its own port  {status['address']['url']}   (HTTP and gRPC, no prefix)", soft_wrap=True)
    for one in status.get("components", {}).get("predictor", {}).get("traffic", ()):
        out.print(f"  {one['percent']:3d} %         {one['revisionName']}")
    flag = f" -n {meta['namespace']}" if meta["namespace"] != "default" else ""
    out.print(
        f"\n  Try it:  serve predict {meta['name']}{flag}        see it:  serve status {meta['name']}{flag}\n", soft_wrap=True
    )


def apply(
    file: Annotated[
        list[str], typer.Option("--filename", "-f", help="A manifest, a folder of them, or - for stdin.", show_default=False)
    ],
    namespace: Namespace = "default",
    target: TargetOption = Where.local,
    wait: Wait = False,
    timeout: Timeout = "5m",
    output: Output = Form.table,
) -> None:
    """Apply InferenceService manifests, as `kubectl apply` does."""
    with errors():
        client = client_for(target)
        raws = [_placed(raw, namespace) for one in file for raw in _documents(one)]
        # all are checked before any is applied
        for raw in raws:
            spec.parse(raw)
        applied = [client.apply(raw) for raw in raws]
        for service in applied:
            for notice in spec.notices(spec.parse(service), "local"):
                say(f"note: {service['metadata']['name']}: {notice.path}: {notice.message}", "yellow")
        if wait:
            applied = [waiting.until_ready(client, service, waiting.seconds(timeout)) for service in applied]
        if output is Form.table:
            for service in applied:
                print(f"inferenceservice.serving.kserve.io/{service['metadata']['name']} applied")
        else:
            show(applied, output, single=len(applied) == 1)


def _documents(name: str) -> list[dict[str, Any]]:
    if name == "-":
        return spec.documents(sys.stdin.read(), "stdin")
    path = Path(name)
    files = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml", ".json")) if path.is_dir() else [path]
    found: list[dict[str, Any]] = []
    for one in files:
        try:
            found += spec.documents(one.read_text(), str(one))
        except OSError as error:
            raise SpecError([spec.Mistake(str(one), f"can't be read: {error.strerror}")]) from None
    return found


def _placed(raw: dict[str, Any], namespace: str) -> dict[str, Any]:
    meta = raw.get("metadata")
    return {**raw, "metadata": {"namespace": namespace, **meta}} if isinstance(meta, dict) else raw


def get(
    name: Annotated[str, typer.Argument(metavar="[NAME]", show_default=False)] = "",
    namespace: Namespace = "default",
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Services of every namespace.")] = False,
    target: TargetOption = Where.local,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on and print what changes.")] = False,
    output: Output = Form.table,
) -> None:
    """List services, or show one."""
    with errors():
        client = client_for(target)

        def look() -> list[dict[str, Any]]:
            return [client.get(namespace, name)] if name else client.listed(None if all_namespaces else namespace)

        seen = look()
        show(seen, output, single=bool(name))
        while watch:
            time.sleep(0.5)
            if (now := look()) != seen:
                seen = now
                show(seen, output, single=bool(name))


def status(name: Service, namespace: Namespace = "default", target: TargetOption = Where.local) -> None:
    """What a service is doing, and in one line why where it is not Ready."""
    with errors():
        client = client_for(target)
        service = client.get(namespace, name)
        out = Console(highlight=False)
        found, ready = service.get("status", {}), condition(service)
        why = "" if ready.get("status") == "True" else f"  {ready.get('reason', '')}: {ready.get('message', '')}"
        out.print(f"{name}  Ready={ready.get('status', 'Unknown')}{why}", soft_wrap=True, markup=False)
        out.print(f"  url      {found.get('url', '')}\n  address  {found.get('address', {}).get('url', '')}", soft_wrap=True)
        traffic = {t["revisionName"]: t for t in found.get("components", {}).get("predictor", {}).get("traffic", ())}
        running = [p for p in client.platform()["processes"] if (p["namespace"], p["service"]) == (namespace, name)]
        for revision in client.revisions(namespace, name):
            mine = [p for p in running if p["revision"] == revision["name"]]
            if not mine and revision["name"] not in traffic:
                continue
            percent = traffic.get(revision["name"], {}).get("percent", 0)
            bar = "█" * round(percent / 5)
            ready_now = sum(p["ready"] for p in mine)
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
    namespace: Namespace = "default",
    target: TargetOption = Where.local,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="NAME: VALUE, such as serve-revision: candidate.")
    ] = None,
    output: Annotated[Form, typer.Option("--output", "-o", help="json: the whole answer.")] = Form.table,
) -> None:
    """Send a request to a service; without --data one that its model accepts."""
    with errors():
        service = client_for(target).get(namespace, name)
        url = service.get("status", {}).get("url")
        if condition(service, "IngressReady").get("status") != "True" or not url:
            ready = condition(service)
            raise Conflict(f"{name} does not answer yet: {ready.get('reason', '')}: {ready.get('message', '')}")
        headers = dict(h.split(":", 1) if ":" in h else h.split("=", 1) for h in header or ())
        body = _request_body(url, name, data)
        path = f"/v1/models/{name}:predict" if "instances" in body else f"/v2/models/{name}/infer"
        started = time.monotonic()
        answer = _call(url + path, body, {k.strip(): v.strip() for k, v in headers.items()})
        took = time.monotonic() - started
        if output is Form.json:
            print(json.dumps(answer))
            return
        say(f"POST {url}{path}", "dim")
        say(json.dumps(body), "dim")
        print(json.dumps(answer, indent=2) if output is Form.table else yaml.safe_dump(answer, sort_keys=False))
        say(f"{took * 1e3:.1f} ms", "dim")


def _request_body(url: str, name: str, data: str | None) -> dict[str, Any]:
    if data is None:
        page = _call(f"{url}/openapi.json", None, {})
        try:
            content = page["paths"][f"/v2/models/{name}/infer"]["post"]["requestBody"]["content"]
            return dict(content["application/json"]["example"])
        except KeyError:
            raise DeployerError(f"{name} has no sample of its inputs; give a request with --data") from None
    text = sys.stdin.read() if data == "-" else Path(data[1:]).read_text() if data.startswith("@") else data
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise SpecError([spec.Mistake("--data", f"is no JSON object: {error}")]) from None


def _call(url: str, body: Any, headers: dict[str, str]) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    # loopback: a proxy of the environment is for other addresses
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=120) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        raise DeployerError(f"{error.code}: {error.read().decode(errors='replace')[:2000]}") from None
    except (OSError, ValueError) as error:
        raise DeployerError(f"{url}: {error}") from None


def logs(
    name: Service,
    namespace: Namespace = "default",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines are written.")] = False,
    tail: Annotated[int, typer.Option(min=0, help="Lines of each process; 0: all.")] = 50,
    target: TargetOption = Where.local,
) -> None:
    """What a service's processes wrote, each line behind its process's name."""
    with errors():
        client_for(target).get(namespace, name)
        folder = state.find().logs(namespace, name)
        positions: dict[Path, int] = {}
        while True:
            for file in sorted(folder.glob("*.log")):
                positions[file] = _print_from(file, positions.get(file), tail)
            if not follow:
                return
            sys.stdout.flush()
            time.sleep(0.2)


def _print_from(file: Path, position: int | None, tail: int) -> int:
    with file.open("rb") as opened:
        end = opened.seek(0, 2)
        opened.seek(0 if position is None or position > end else position)
        lines = opened.read().decode(errors="replace").splitlines()
        for line in lines[-tail:] if position is None and tail else lines:
            print(f"{file.stem}  {line}")
        return opened.tell()


def promote(
    name: Service,
    canary: Annotated[str | None, typer.Option(help="Which, where the service has several.", show_default=False)] = None,
    namespace: Namespace = "default",
    target: TargetOption = Where.local,
    wait: Wait = True,
    timeout: Timeout = "5m",
    output: Output = Form.table,
) -> None:
    """Give the candidate all requests."""
    _change(name, namespace, target, wait, timeout, output, lambda client, old: (changes.promote(old, canary), "known"))


def rollback(
    name: Service,
    to: Annotated[str | None, typer.Option(help="A revision, as `serve status` names it.", show_default=False)] = None,
    namespace: Namespace = "default",
    target: TargetOption = Where.local,
    wait: Wait = True,
    timeout: Timeout = "5m",
    output: Output = Form.table,
) -> None:
    """Give up the candidate; where there is none, go back to the revision before, or to --to."""

    def change(client: LocalClient, old: dict[str, Any]) -> tuple[dict[str, Any], str]:
        made, revision = changes.roll_back(old, client.revisions(namespace, name), to)
        say(f"back to {revision}", "dim")
        return made, revision

    _change(name, namespace, target, wait, timeout, output, change)


def _change(
    name: str,
    namespace: str,
    target: Where,
    wait: bool,
    timeout: str,
    output: Form,
    change: Callable[[LocalClient, dict[str, Any]], tuple[dict[str, Any], str]],
) -> None:
    with errors():
        client = client_for(target)
        made, content = change(client, client.get(namespace, name))
        _finish(client, client.apply(made, content), wait, timeout, output)


def delete(
    names_: Annotated[list[str] | None, typer.Argument(metavar="NAME...", show_default=False)] = None,
    file: Annotated[list[str] | None, typer.Option("--filename", "-f", help="Delete what a manifest names.")] = None,
    namespace: Namespace = "default",
    target: TargetOption = Where.local,
    ignore_not_found: Annotated[bool, typer.Option(help="What is gone already is no error.")] = False,
    wait: Wait = True,
    timeout: Timeout = "60s",
    output: Output = Form.table,
) -> None:
    """Delete services; requests in flight are answered first."""
    with errors():
        client = client_for(target)
        wanted = [(namespace, one) for one in names_ or ()]
        named = (_placed(raw, namespace)["metadata"] for one in file or () for raw in _documents(one))
        wanted += [(meta["namespace"], meta["name"]) for meta in named]
        if not wanted:
            raise give_up("name a service, or a manifest with -f", 2)
        gone = []
        for where, one in wanted:
            try:
                gone.append(client.delete(where, one))
            except NotFound:
                if not ignore_not_found:
                    raise
        for one_gone in gone if wait else ():
            waiting.until_gone(client, one_gone["metadata"]["namespace"], one_gone["metadata"]["name"], waiting.seconds(timeout))
        if output is Form.table:
            for one_gone in gone:
                print(f"inferenceservice.serving.kserve.io/{one_gone['metadata']['name']} deleted")
        else:
            show(gone, output, single=len(gone) == 1)


def render(
    file: Annotated[
        list[str], typer.Option("--filename", "-f", help="A manifest, a folder of them, or - for stdin.", show_default=False)
    ],
    namespace: Namespace = "default",
) -> None:
    """Print manifests as they are understood: defaults filled in, the runtime chosen, the container it makes."""
    with errors():
        for raw in (_placed(raw, namespace) for one in file for raw in _documents(one)):
            service = spec.parse(raw)
            predictor = service.spec.predictor
            shown: dict[str, Any] = {"service": names.key(service.metadata.namespace, service.metadata.name)}
            shown["object"] = spec.as_object(service)
            if predictor.model is not None:
                runtime = runtimes.select(predictor, (), runtimes.BUILTIN)
                shown |= {"runtime": runtime.name, "container": runtimes.merge(runtime, service, predictor).container}
            notices = [f"{n.path}: {n.message}" for n in spec.notices(service, "local")]
            print("---\n" + yaml.safe_dump(shown | ({"withoutEffect": notices} if notices else {}), sort_keys=False), end="")
