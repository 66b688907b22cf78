"""What the command prints: data on stdout in the form asked for, talk and errors on stderr."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deployer.errors import DeployerError, NotFound, SpecError

FAILED, USAGE, NOT_FOUND, TIMED_OUT, INTERRUPTED = 1, 2, 3, 4, 130
WIDEST = 10_000
err = Console(stderr=True, highlight=False)


class Form(StrEnum):
    table = "table"
    wide = "wide"
    json = "json"
    yaml = "yaml"
    name = "name"


def say(text: str, style: str | None = None) -> None:
    err.print(text, style=style, soft_wrap=True, markup=False)


def give_up(text: str, code: int = FAILED) -> typer.Exit:
    """Say why, and have an exit to raise."""
    for line in text.splitlines() or [""]:
        say(f"serve: {line}", "red")
    return typer.Exit(code)


@contextlib.contextmanager
def ended() -> Iterator[None]:
    """Errors as a line and an exit code; a reader that went away ends the command quietly."""
    try:
        yield
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


@contextlib.contextmanager
def errors() -> Iterator[None]:
    try:
        yield
    except NotFound as error:
        raise give_up(str(error), NOT_FOUND) from None
    except SpecError as error:
        raise give_up(str(error), USAGE) from None
    except DeployerError as error:
        raise give_up(str(error)) from None
    except BrokenPipeError:
        raise
    except OSError as error:  # of files that were named, and of stdout
        raise give_up(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def show(items: Sequence[Mapping[str, Any]], form: Form, single: bool) -> None:
    """Objects of the API; `single`: one was asked for by name, so that JSON is it and not a list."""
    whole: Any = items[0] if single else {"apiVersion": "v1", "kind": "List", "items": list(items)}
    match form:
        case Form.json:
            print(json.dumps(whole, indent=2))
        case Form.yaml:
            print(yaml.safe_dump(whole, sort_keys=False), end="")
        case Form.name:
            for one in items:
                print(f"inferenceservice.serving.kserve.io/{one['metadata']['name']}")
        case _:
            _table(items, form is Form.wide)
    sys.stdout.flush()  # a reader of `get -w` waits for each


def _table(items: Sequence[Mapping[str, Any]], wide: bool) -> None:
    if not items:
        say("no services here; `serve deploy MODEL` makes one", "dim")
        return
    names = ["NAMESPACE", "NAME", "URL", "READY", "PREV", "LATEST", "PREVROLLEDOUTREVISION", "LATESTREADYREVISION", "AGE"]
    print_table([*names, *(["REPLICAS", "ADDRESS", "REASON"] if wide else [])], [_row(one, wide) for one in items])


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Whole, as kubectl prints its own: a terminal folds what is too long for it, and nothing is cut off."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False, width=WIDEST).print(table)


def _row(one: Mapping[str, Any], wide: bool) -> list[str]:
    meta, status = one["metadata"], one.get("status", {})
    component = status.get("components", {}).get("predictor", {})
    traffic = component.get("traffic", [])
    latest: Mapping[str, Any] = next((t for t in traffic if t.get("latestRevision")), {})
    prev: Mapping[str, Any] = next((t for t in traffic if t.get("tag") == "prev"), {})
    ready = condition(one)
    row = [meta["namespace"], meta["name"], status.get("url", ""), ready.get("status", "Unknown")]
    row += [str(prev.get("percent", "")), str(latest.get("percent", "")), prev.get("revisionName", "")]
    row += [latest.get("revisionName", ""), age(meta.get("creationTimestamp", ""))]
    if wide:
        copies = status.get("modelStatus", {}).get("copies", {}).get("totalCopies", 0)
        row += [str(copies), status.get("address", {}).get("url", ""), ready.get("reason", "")]
    return row


def condition(one: Mapping[str, Any], kind: str = "Ready") -> dict[str, Any]:
    return next((c for c in one.get("status", {}).get("conditions", ()) if c["type"] == kind), {})


def age(stamp: str) -> str:
    """kubectl's way: the largest unit that says something."""
    if not stamp:
        return ""
    seconds = int((datetime.now(UTC) - datetime.fromisoformat(stamp.replace("Z", "+00:00"))).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(0, seconds)}s"
