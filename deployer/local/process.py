"""A revision's template → the process that serves it.  Pure: what to run, with which environment and limits."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from server.settings import Settings, to_flags

# What the runtimes' containers say of a pod, and this machine says otherwise.
_OF_THE_POD = ("model_name", "model_dir", "http_port", "grpc_port", "host", "port", "rest_port")
# What a predictor gets of the user's environment: what finds libraries, certificates and proxies, nothing that is secret.
_INHERITED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
)
DRAIN_SECONDS = 1.0
GRACE_SECONDS = 25.0


def command(template: Mapping[str, Any], name: str, model: str, http_port: int, grpc_port: int) -> list[str]:
    """An argv list: no shell sees any of a spec's words."""
    settings = Settings.model_construct(
        **{field: info.default for field, info in Settings.model_fields.items()}
        | {
            "model_name": name,
            "model_dir": model,
            "runtime": _runtime(template["container"]["image"]),
            "http_port": http_port,
            "grpc_port": grpc_port,
        }
        | {"trust_pickle": template["trustCode"], "timeout": template["timeout"], "drain_delay": DRAIN_SECONDS}
        | {"grace": GRACE_SECONDS, "log_format": "json"}
    )
    # -P: a server.py in the working directory is not ours
    return [sys.executable, "-P", "-m", "server", *to_flags(settings), *_own_flags(template["container"].get("args", ()))]


# Images of the runtimes that come with this package; what is in one is installed here too.
_OURS = "serveplane/"


def refuses(container: Mapping[str, Any]) -> str:
    """Why this machine can't run a container, and what to do; "" where it can."""
    image = str(container.get("image", ""))
    if image.startswith(_OURS) and not container.get("command"):
        return ""
    found = f"the command {container['command']!r}" if image.startswith(_OURS) else f"the image {image!r}"
    return (
        f"there are no containers on one machine, so {found} can't be run; use one of the runtimes that come with serve, "
        "or deploy to a cluster"
    )


def _runtime(image: str) -> str:
    """ "sklearn" of "serveplane/sklearn:0.1.0"."""
    return image.removeprefix(_OURS).partition(":")[0].partition("@")[0]


def _own_flags(args: Sequence[str]) -> list[str]:
    """The flags that a user added to the runtime's."""
    kept: list[str] = []
    skip = False
    for word in args:
        if skip and not word.startswith("--"):
            skip = False
            continue
        flag, equals, _ = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") in _OF_THE_POD:
            skip = not equals
            continue
        skip = False
        kept.append(word)
    return kept


def environment(template: Mapping[str, Any], mine: Mapping[str, str]) -> dict[str, str]:
    kept = {name: mine[name] for name in _INHERITED if name in mine}
    given = {e["name"]: str(e["value"]) for e in template["container"].get("env", ()) if "value" in e}
    return kept | given
