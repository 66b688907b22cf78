"""`serve run` and `serve check`: one model, on this machine, without the platform."""

import json
import os
import re
import subprocess
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deployer.cli.output import err
from server.settings import Settings, to_flags


class Output(StrEnum):
    text = "text"
    json = "json"


class LogFormat(StrEnum):
    auto = "auto"
    json = "json"
    text = "text"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A file, a folder, model.py:Class, or a URI: file, http(s), s3, gs, az.", show_default=False
    ),
]
Models = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]",
        help="A file, a folder, model.py:Class, a repository (NAME/VERSION/…), or a URI: file, http(s), s3, gs, az.",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Option(help="The model's name in URLs; by default from the file's name.", show_default=False)]
AllowPrivate = Annotated[
    bool, typer.Option("--allow-private-addresses", help="Fetch MODEL from this machine's or a private network's server, too.")
]
Sha256 = Annotated[
    str, typer.Option("--sha256", metavar="HEX", help="The checksum that the model's file must have.", show_default=False)
]
Runtime = Annotated[str, typer.Option(help="sklearn, onnx, tensorflow or python; by default by looking.", show_default=False)]
TrustPickle = Annotated[
    bool | None, typer.Option(help="Open files that can run code; by default where MODEL is a local path.", show_default=False)
]
StrictVersions = Annotated[bool, typer.Option(help="Refuse a model made by another version of its framework.")]
RuntimeOption = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the runtime; may be repeated.")]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="json: one line when ready.")]


def _settings(**given: Any) -> Settings:
    try:
        return Settings(**given)
    except ValueError as error:
        mistakes: list[Any] = getattr(error, "errors", list)()
        text = "; ".join(f"--{str(m['loc'][0]).replace('_', '-')}: {m['msg']}, got {m['input']!r}" for m in mistakes) or str(
            error
        )
        err.print(f"serve: {text}", style="red")
        raise typer.Exit(2) from None


def run(
    model: Models = "",
    name: Name = "",
    runtime: Runtime = "",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8080,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8081,
    trust_pickle: TrustPickle = None,
    strict_versions: StrictVersions = False,
    runtime_option: RuntimeOption = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the addresses.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="CPU budget of the model; 0: the quota of this process.")] = 0,
    max_batch_size: Annotated[int, typer.Option(min=0, help="Rows per batch; 1: no batching; 0: measured.")] = 0,
    max_queue: Annotated[int, typer.Option(min=0, help="Rows that may wait; 0: sixteen batches.")] = 0,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds a request may take; 0: no limit.")] = 60.0,
    drain_delay: Annotated[float, typer.Option(min=0, help="Seconds to go on serving after SIGTERM.")] = 5.0,
    grace: Annotated[float, typer.Option(min=0, help="Seconds from SIGTERM until what runs is given up.")] = 25.0,
    access_log: Annotated[bool, typer.Option(help="One line per request on stderr.")] = True,
    log_format: Annotated[LogFormat, typer.Option(help="auto: text on a terminal, JSON elsewhere.")] = LogFormat.auto,
    metrics_compat: Annotated[str, typer.Option(help="Metrics under other names too: triton, tfs, kserve, by commas.")] = "",
    trace_sample: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the requests that begin a trace.")] = None,
    sha256: Sha256 = "",
    allow_private_addresses: AllowPrivate = False,
    strict_json: Annotated[bool, typer.Option(help="Write NaN and Infinity as null.")] = False,
    version_policy: Annotated[
        str, typer.Option(metavar="POLICY", help="Which versions are served: latest[:N], all or specific:1,3.")
    ] = "latest",
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VERSION", help="A label for URLs, such as stable=1; may be repeated.")
    ] = None,
    poll_interval: Annotated[
        float, typer.Option(min=0, help="Seconds between looks for new versions and models; 0: at the start only.")
    ] = 2.0,
    model_config_file: Annotated[
        str, typer.Option(metavar="FILE", help="In the place of MODEL: a file that names models.", show_default=False)
    ] = "",
    enable_model_control: Annotated[
        bool, typer.Option("--enable-model-control", help="Let clients load, unload and reconfigure models.")
    ] = False,
    output: OutputOption = Output.text,
) -> None:
    """Serve MODEL, or the models of a repository or a file, in the foreground until Ctrl-C."""
    if bool(model) is bool(model_config_file):
        found = "two sources of models" if model else "no model"
        err.print(f"serve: {found} given: name a MODEL, or a file of models with --model-config-file", style="red", markup=False)
        raise typer.Exit(2)
    settings = _settings(
        model_dir=_pinned(model, sha256) if model else "",
        model_config_file=model_config_file,
        version_policy=version_policy,
        label=tuple(label or ()),
        poll_interval=poll_interval,
        enable_model_control=enable_model_control,
        allow_private_addresses=allow_private_addresses,
        model_name=name,
        runtime=runtime,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        trust_pickle=trust_pickle,
        strict_versions=strict_versions,
        runtime_option=tuple(runtime_option or ()),
        workers=workers,
        threads=threads,
        max_batch_size=max_batch_size,
        max_queue=max_queue,
        timeout=timeout,
        drain_delay=drain_delay,
        grace=grace,
        access_log=access_log,
        log_format=log_format.value,
        metrics_compat=metrics_compat,
        trace_sample=trace_sample,
        strict_json=strict_json,
        output=output.value,
    )
    if err.is_terminal:
        err.print(f"Loading {model or model_config_file} …", style="dim")
    # this process becomes the predictor: what the command line needed is not kept in memory
    os.execv(sys.executable, [sys.executable, "-P", "-m", "server", *to_flags(settings)])


def check(
    model: Model,
    runtime: Runtime = "",
    trust_pickle: TrustPickle = None,
    strict_versions: StrictVersions = False,
    runtime_option: RuntimeOption = None,
    sha256: Sha256 = "",
    allow_private_addresses: AllowPrivate = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that loading may take; 0: no limit.")] = 300.0,
    output: OutputOption = Output.text,
) -> None:
    """Load MODEL in a process of its own and tell what it is; exit 1 where it can't be served."""
    settings = _settings(
        model_dir=_pinned(model, sha256),
        allow_private_addresses=allow_private_addresses,
        runtime=runtime,
        trust_pickle=trust_pickle,
        strict_versions=strict_versions,
        runtime_option=tuple(runtime_option or ()),
    )
    command = [sys.executable, "-P", "-m", "server.check", *to_flags(settings)]
    with err.status(f"Loading {model} …"):
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=timeout or None, check=False)
        except subprocess.TimeoutExpired:
            _give_up(f"{model} was not loaded within {timeout:g} s (--timeout)")
    if done.returncode < 0:
        _give_up(f"{model}: the process that loaded it was ended by signal {-done.returncode}")
    try:
        report = json.loads(done.stdout)
    except ValueError:
        _give_up(f"{model}: the process that loaded it ended with exit code {done.returncode} and no report")
    if output is Output.json:
        print(json.dumps(report))
    else:
        for one in report.get("models", [report]):
            if one["ok"]:
                _print_report(one)
    if not report["ok"]:
        _give_up(report["error"])


def _pinned(model: str, sha256: str) -> str:
    """The model's URI with its checksum, as the server reads it; exit code 2 where it is none."""
    if sha256 and not re.fullmatch("[0-9A-Fa-f]{64}", sha256):
        err.print(f"serve: --sha256: wanted 64 hex digits, as sha256sum prints them, got {sha256!r}", style="red", markup=False)
        raise typer.Exit(2)
    return f"{model}#sha256={sha256}" if sha256 else model


def _give_up(text: str) -> None:
    err.print(f"serve: {text}", style="red", soft_wrap=True, markup=False)
    raise typer.Exit(1)


def _print_report(report: dict[str, Any]) -> None:
    out = Console(highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("model", report["name"])
    if report["version"]:
        table.add_row("version", report["version"])
    table.add_row("runtime", report["platform"])
    for kind in ("inputs", "outputs"):
        for at, spec in enumerate(report[kind]):
            asked = "" if kind == "inputs" or spec["name"] in report["default_outputs"] else "   when asked for"
            table.add_row(kind if not at else "", f"{spec['name']}  {spec['datatype']} {spec['shape']}{asked}")
    for name, value in report["properties"].items():
        table.add_row(name, value)
    table.add_row("load", f"{report['load_seconds']:.2f} s")
    for rows, ms in report["latency_ms"].items():
        table.add_row(f"{rows} rows" if rows != "1" else "1 row", f"{ms:.3f} ms")
    table.add_row("memory", f"{report['memory_mb']:.0f} MB, of which the model and its framework {report['model_mb']:.0f} MB")
    out.print(table)
    for warning in report["warnings"]:
        err.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False)
