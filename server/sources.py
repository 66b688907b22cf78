"""Where a process gets its models from: one model, the versions of one, a repository, or a configuration file."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from server import folders, model_config, storage
from server.errors import ModelLoadError
from server.folders import Shape
from server.model_config import ModelSpec
from server.settings import Settings
from server.versions import labels_of, policy_of


@dataclass(frozen=True)
class Sources:
    """`models` that are told one by one, or all that lie in a `root`, each as the `template` says.

    `may_change`: new versions may turn up, so it is worth looking.
    """

    models: tuple[ModelSpec, ...] = ()
    root: Path | None = None
    template: ModelSpec = ModelSpec("", Path())
    may_change: bool = True

    def specs(self) -> tuple[ModelSpec, ...]:
        """The models of now; OSError where the root can't be read.  Takes as long as the disk does."""
        if self.root is None:
            return self.models
        found = folders.models_in(folders.tree(self.root))
        return tuple(replace(self.template, name=name, path=self.root / name) for name in found)


def sources_of(settings: Settings) -> Sources:
    """What the settings name, fetched where it lies elsewhere; ModelLoadError says what is wrong with it."""
    if settings.model_config_file:
        return Sources(model_config.read(Path(settings.model_config_file)))
    limits = settings.max_model_bytes, settings.max_model_seconds
    path = storage.fetch(settings.model_dir, None, *limits, settings.allow_private_addresses)
    labels = labels_of(settings.label)
    name = settings.model_name or model_name(settings.model_dir)
    template = ModelSpec(name, path, policy_of(settings.version_policy), labels, settings.runtime)
    tree = _tree(path)
    kind = folders.shape(tree)
    local = "://" not in settings.model_dir or settings.model_dir.startswith("file://")
    if kind is Shape.REPOSITORY:
        names = folders.models_in(tree)
        if not settings.model_name:
            return Sources((), path, template, may_change=local)
        if len(names) > 1:
            raise ModelLoadError(
                f"{path} holds several models: {', '.join(names[:20])}",
                "they are called as their folders are: leave the name out, or name one of the folders",
            )
        template = replace(template, path=path / names[0])
    elif kind is Shape.MODEL and labels:
        raise ModelLoadError(
            f"{path} is one model without versions, and labels are for versions",
            "leave --label out, or put the model into a folder whose name is its version's number",
        )
    return Sources((template,), may_change=local and kind is not Shape.MODEL)


def _tree(path: Path) -> folders.Tree:
    try:
        return folders.tree(path) if path.is_dir() else {}
    except OSError as error:
        raise ModelLoadError(f"can't read {path}: {error.strerror}", "check its permissions") from error


def model_name(uri: str) -> str:
    """A name for the URL from a model's path: "examples/iris.skops" is "iris"; a file called "model" has its folder's."""
    uri = re.sub("#sha256=[0-9A-Fa-f]{64}$", "", uri)
    if uri.startswith(("http://", "https://")):
        # not what says who may read it, which is before the path or behind it
        uri = re.sub("^https?://[^/?#]*|[?#].*", "", uri)
        if not uri.strip("/"):
            return "model"
    uri = uri.removeprefix("file://").rstrip("/")
    path = Path(uri.rpartition(":")[0] if ".py:" in uri else uri)
    stem = path.name.split(".")[0]
    if stem in ("model", "saved_model", "") or stem.isdecimal():
        stem = path.resolve().parent.name
    cleaned = "".join(c if c.isalnum() or c in "-_." else "-" for c in stem).strip("-_.")
    return cleaned or "model"
