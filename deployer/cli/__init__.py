"""The `serve` command.  stdout is data, stderr is talk.

Exit codes: 0 done, 1 it failed, 2 it was asked wrongly, 3 there is no such thing, 4 it was not so within --timeout,
130 interrupted.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from deployer.cli import changing, loadtest, looking, platform, run
from deployer.cli.output import Form, ended

app = typer.Typer(
    name="serve",
    help="Serve models: scikit-learn, ONNX, TensorFlow or a Python class, over HTTP and gRPC.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        platform.version(Form.table)
        raise typer.Exit


@app.callback()
def serve(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")] = False,
) -> None:
    pass


SERVICES: tuple[Callable[..., None], ...] = (
    changing.deploy,
    changing.apply,
    looking.get,
    looking.status,
    looking.predict,
    loadtest.loadtest,
    looking.logs,
    changing.promote,
    changing.rollback,
    changing.delete,
    looking.render,
)
ONE_MODEL: tuple[Callable[..., None], ...] = (run.run, run.check)
for panel, commands in (("Services", SERVICES), ("One model", ONE_MODEL)):
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(platform.app, name="platform", rich_help_panel="This machine")
app.command(rich_help_panel="This machine")(platform.doctor)
app.command(rich_help_panel="This machine")(platform.version)


def main() -> None:
    # `serve` is also the name of other packages' commands: say whose it is
    with ended():
        app(prog_name=Path(sys.argv[0]).name if Path(sys.argv[0]).name == "serveplane" else "serve")
