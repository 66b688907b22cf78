"""Everything one predictor process is told: flags and SERVER_* variables, read once into one frozen object.

Nothing else in `server` reads the environment.  The deployer writes what this reads (`to_flags`), so that a renamed
setting is a type error there and not a broken process.
"""

import argparse
import contextlib
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.versions import labels_of, policy_of

MEBIBYTE = 1 << 20


VARIABLES = "SERVER_"
# The servers whose names for metrics are known here.
METRIC_NAMES = ("triton", "tfs", "kserve")


class Settings(BaseSettings):
    """Flags are the field names (`--model_name`, or `--model-name`); 0 means "choose by measuring" where it says so."""

    model_config = SettingsConfigDict(env_prefix=VARIABLES, frozen=True, extra="ignore", protected_namespaces=())

    model_name: str = Field(
        "", pattern="^[^/]*$", description="the model's name in URLs, without a slash; default: derived from the file's name"
    )
    model_dir: str = Field(
        "", description="the model: a file, a folder, or a file:// URI; or a repository, a folder of models with their versions"
    )
    model_config_file: str = Field(
        "", description="in the place of model_dir: the models in a YAML or JSON file, or in TensorFlow Serving's text form"
    )
    version_policy: str = Field("latest", description="which versions of a model are served: latest[:N], all or specific:1,3")
    label: tuple[str, ...] = Field((), description="NAME=VERSION, such as stable=1, for URLs with /labels/NAME; may be repeated")
    poll_interval: float = Field(2.0, ge=0, description="seconds between looks for new versions and models; 0: at start only")
    enable_model_control: bool = Field(False, description="let clients load, unload and reconfigure models")
    runtime: str = Field("", description="sklearn, onnx, tensorflow, python; default: by looking at the files")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    http_port: int = Field(8080, ge=0, le=65535, description="HTTP port; 0 picks a free one")
    grpc_port: int = Field(8081, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    enable_grpc: bool = Field(True, description="serve gRPC")
    grpc_engine: Literal["fast", "grpcio"] = Field("fast", description="what carries gRPC: our own HTTP/2, or the library")
    http_fast: bool = Field(True, description="answer plain inference requests straight from the HTTP parser")
    enable_docs_url: bool = Field(True, description="serve the page at / for browsers, /docs and /openapi.json")
    root_path: str = Field("", description="a path prefix in front of every URL, such as /serving/default/iris")

    trust_pickle: bool | None = Field(
        None,
        description="open files that may run code (pickle, joblib, Python classes); default: where model_dir is a local path",
    )
    strict_versions: bool = Field(False, description="refuse a model made by another version of its framework")
    strict_json: bool = Field(False, description="write NaN and Infinity as null, and refuse them in requests")
    runtime_option: tuple[str, ...] = Field((), description="NAME=VALUE for the runtime; may be repeated")

    max_model_bytes: int = Field(
        10 << 30, gt=0, description="largest model that is downloaded, and what an archive may unpack to"
    )
    max_model_seconds: float = Field(7200.0, gt=0, description="seconds that downloading the model may take")
    allow_private_addresses: bool = Field(
        False, description="fetch a model from an http(s) server on this machine or on a private network, too"
    )

    threads: int = Field(0, ge=0, description="CPU budget of the model's thread pools; 0: the cgroup's quota")
    concurrency: int = Field(0, ge=0, description="batches at once; 0: what the runtime asks for")
    max_batch_size: int = Field(0, ge=0, description="rows per batch; 1: no batching; 0: measured at load")
    max_queue: int = Field(0, ge=0, description="rows that may wait; 0: sixteen batches, at least 1024")
    timeout: float = Field(60.0, ge=0, description="seconds a request may take; 0: no limit")
    max_body_bytes: int = Field(64 * MEBIBYTE, gt=0, description="largest request body and gRPC message, after decompression too")
    max_header_bytes: int = Field(64 * 1024, ge=1024, description="largest head of an HTTP request: its first line and headers")
    max_headers: int = Field(100, gt=0, description="most headers of an HTTP request")
    max_url_bytes: int = Field(32 * 1024, gt=0, description="longest URL of an HTTP request")
    receive_timeout: float = Field(30.0, gt=0, description="seconds a client has to send a request's body, or a gRPC message")
    send_timeout: float = Field(
        30.0, gt=0, description="seconds without progress after which a client that does not read is cut off"
    )
    timeout_keep_alive: float = Field(65.0, gt=0, description="seconds an idle HTTP connection is kept")
    limit_connections: int = Field(1000, gt=0, description="HTTP connections at once, and as many of gRPC")

    drain_delay: float = Field(
        5.0, ge=0, description="seconds to go on serving after SIGTERM, not ready, while load balancers notice"
    )
    grace: float = Field(25.0, ge=0, description="seconds from SIGTERM after which what still runs is given up")
    workers: int = Field(1, ge=1, description="processes that share the listening addresses")
    reuse_port: bool = Field(False, description="share the addresses with other processes; workers are started with it")
    listen_when_ready: bool = Field(
        False, description="take connections only once the model is loaded; a worker that replaces another is started with it"
    )
    metrics_dir: str = Field("", description="folder in which the metrics of several processes meet; workers are started with it")

    metrics_compat: str = Field(
        "", description="servers under whose names the metrics are on the page too: triton, tfs, kserve, or several by commas"
    )
    trace_sample: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the requests that begin a trace of OpenTelemetry's; those of a sampled trace always go on with it;"
        " default: no spans",
    )
    access_log: bool = Field(True, description="one line per request on stderr")
    access_log_sample: float = Field(
        1.0, ge=0, le=1, description="share of the answered requests that have a line; what failed always has one"
    )
    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, JSON elsewhere")
    output: Literal["text", "json", "none"] = Field("none", description="what is printed on stdout when ready")

    @field_validator("root_path")
    @classmethod
    def _rooted(cls, path: str) -> str:
        bare = path.strip("/")
        return f"/{bare}" if bare else ""

    @field_validator("metrics_compat")
    @classmethod
    def _known(cls, names: str) -> str:
        for name in filter(None, names.split(",")):
            if name not in METRIC_NAMES:
                raise ValueError(f"{name!r} is none of {', '.join(METRIC_NAMES)}")
        return names

    @field_validator("version_policy")
    @classmethod
    def _a_policy(cls, text: str) -> str:
        policy_of(text)
        return text

    @field_validator("label")
    @classmethod
    def _labels(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        labels_of(texts)
        return texts

    @property
    def trusts_code(self) -> bool:
        """Whether the model may run code when it is opened: a local path that a person named is theirs to trust."""
        if self.trust_pickle is not None:
            return self.trust_pickle
        return "://" not in self.model_dir or self.model_dir.startswith("file://")

    @property
    def runtime_options(self) -> dict[str, str]:
        return {name: value for name, _, value in (option.partition("=") for option in self.runtime_option)}


def from_flags(argv: Sequence[str]) -> Settings:
    """Settings from a command line over the environment's SERVER_* variables; unknown flags end the process with exit 2."""
    parser = argparse.ArgumentParser(prog="python -m server", description="Serve models over HTTP and gRPC.", allow_abbrev=False)
    for name, field in Settings.model_fields.items():
        names = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
        text = f"{field.description} (default: {field.default!r})"
        if field.annotation in (bool, bool | None):
            parser.add_argument(*names, nargs="?", const=True, type=_flag, default=None, metavar="true|false", help=text)
        elif name in ("runtime_option", "label"):
            parser.add_argument(*names, action="append", default=None, metavar="NAME=VALUE", help=text)
        else:
            kind: Any = field.annotation if isinstance(field.annotation, type) else str
            parser.add_argument(*names, type=kind, default=None, metavar=name.split("_")[-1].upper(), help=text)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    try:
        return Settings(**given)
    except ValueError as error:
        parser.error(_first_mistake(error))


def to_flags(settings: Settings) -> list[str]:
    """The command line that gives these settings: the inverse of `from_flags`, default values left out."""
    flags: list[str] = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if value == field.default:
            continue
        values = value if isinstance(value, tuple) else (value,)
        for one in values:
            text = str(one).lower() if isinstance(one, bool) else str(one)
            # apart they are easier to read in a list of processes; a value that looks like a flag has to stay with its own
            flags += [f"--{name}={text}"] if text.startswith("-") or not text else [f"--{name}", text]
    return flags


def inherited() -> dict[str, str]:
    """The environment for a process that flags tell everything: without variables that would speak where a flag is left out."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(VARIABLES)}


def _flag(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]


def _first_mistake(error: ValueError) -> str:
    mistakes: list[Any] = getattr(error, "errors", list)()
    return "; ".join(f"--{'.'.join(map(str, m['loc']))}: {m['msg']}, got {m['input']!r}" for m in mistakes) or str(error)


def cpu_budget() -> int:
    """CPUs this process may use: the smaller of its affinity and its cgroup's quota, at least 1.

    Frameworks size their thread pools by the host's cores, which throttles them in a container with a quota.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return max(1, cores)


def memory_budget() -> int | None:
    """Bytes of memory this process may use: the smaller of its cgroup's limit and its own; None where neither is set."""
    limits = [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    with contextlib.suppress(OSError, ValueError):
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=None)
