"""Where the local platform keeps what has to survive it: folders by XDG, JSON files renamed into place."""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a socket's address may have, in bytes, and how much of it comes after the state directory.
LONGEST_ADDRESS, LONGEST_SOCKET = 107, len("/supervisor.sock")


@dataclass(frozen=True)
class Home:
    """The state directory: one per user, `SERVEPLANE_HOME` moves it."""

    root: Path

    @property
    def lock(self) -> Path:
        return self.root / "supervisor.lock"

    @property
    def pid(self) -> Path:
        return self.root / "supervisor.json"

    @property
    def socket(self) -> Path:
        return self.root / "supervisor.sock"

    @property
    def log(self) -> Path:
        return self.root / "logs" / "supervisor.log"

    @property
    def settings(self) -> Path:
        """What must stay the same over restarts and belongs to no service: the one address's port."""
        return self.root / "platform.json"

    @property
    def envoy(self) -> Path:
        return self.root / "envoy"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def service(self, key: str) -> Path:
        namespace, _, name = key.partition("/")
        return self.root / "services" / namespace / f"{name}.json"

    def process(self, namespace: str, revision: str, slot: int) -> Path:
        return self.root / "processes" / namespace / f"{revision}.{slot}.json"

    def logs(self, namespace: str, service: str) -> Path:
        return self.root / "logs" / namespace / service

    def unusable(self) -> str:
        """Why no platform can be kept here, and what to do; nothing where one can.  Makes the directory."""
        longest = LONGEST_ADDRESS - LONGEST_SOCKET
        if (length := len(os.fsencode(self.root))) > longest:
            return f"{self.root} has {length} bytes, and at most {longest} leave room for a socket; SERVEPLANE_HOME moves it"
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            return f"{self.root}: {error.strerror}; SERVEPLANE_HOME moves the state directory"
        if not os.access(self.root, os.W_OK | os.X_OK):
            return f"{self.root} can't be written to; SERVEPLANE_HOME moves the state directory"
        return ""

    def service_keys(self) -> list[str]:
        files = (self.root / "services").glob("*/*.json")
        return sorted(f"{file.parent.name}/{file.stem}" for file in files)

    def process_files(self) -> list[Path]:
        return sorted((self.root / "processes").glob("*/*.json"))


def find() -> Home:
    given = os.environ.get("SERVEPLANE_HOME")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Home(Path(given).resolve() if given else Path(base) / "serveplane")


def write(path: Path, document: Any) -> None:
    """All of it or nothing, also over a power cut; OSError where it can't be written."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("w") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def read(path: Path) -> Any:
    """The document, or None where there is none (or only what a dead run left of one)."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
