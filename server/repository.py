"""The models of a process and their versions, as they come and go: from folders that are looked at, files, and clients.

`folders` and `versions` decide; this carries out.  One change at a time, whoever asks for it, because what is loaded is measured.
Everything happens in the event loop but for looking at disks and opening models.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from server import folders, model_config
from server.errors import InvalidRequest, ModelLoadError, ModelNotFound, NotAllowed, NotSupported
from server.folders import Listing, Look
from server.loading import Loader
from server.log import log
from server.model_config import ModelSpec
from server.models import Registry, State, Version
from server.runtime import find_model
from server.sources import Sources
from server.tensors import did_you_mean
from server.versions import labels_now, unwanted, wanted

T = TypeVar("T")

# Versions that have gone and are still told of, for each model.
REMEMBERED = 3


@dataclass
class Model:
    """What is remembered of one model between looks."""

    spec: ModelSpec
    looks: dict[str, Look] = field(default_factory=dict)
    # said once, not at every look
    told: set[str] = field(default_factory=set)
    # a client had it unloaded: looks let it be until a client has it loaded
    stopped: bool = False

    def tell_once(self, text: str, **fields: Any) -> None:
        if text not in self.told:
            self.told.add(text)
            log.warning(text, model=self.spec.name, **fields)


class Repository:
    """Loads what is wanted, and lets go of what is not."""

    def __init__(self, loader: Loader, registry: Registry, *, control: bool = False, alone: bool = True) -> None:
        """`control`: clients may load, unload and reconfigure; `alone`: no other process answers at the same addresses."""
        self._loader, self._registry = loader, registry
        self._control, self._alone = control, alone
        self._sources = Sources()
        self._models: dict[str, Model] = {}
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()

    async def start(self, sources: Sources) -> None:
        """The first load of all.  ModelLoadError where the root can't be read; how each version went is in the registry."""
        self._sources = sources
        async with self._changing:
            try:
                specs = await self._aside(sources.specs)
            except OSError as error:
                raise ModelLoadError(f"can't read {error.filename}: {error.strerror}", "check its permissions") from error
            for entry in self._registry.all_versions():
                self._registry.remove(entry)
            # everybody is to see what is to come, and what it is waited for
            for spec in specs:
                self._models[spec.name] = Model(spec)
                if spec.required:
                    self._registry.required.add(spec.name)
                self._registry.put(Version(spec.name, ""))
            for model in list(self._models.values()):
                await self._bring(model, at_once=True, early=True)
            self._registry.is_starting = False

    async def watch(self, seconds: float, file: Listing | None = None) -> None:
        """Look every so often, for ever.

        Also at a configuration file, of which `file` is what was there before it was read: it is taken in when it has changed and
        is whole.
        """
        before = tried = file
        while True:
            await asyncio.sleep(seconds)
            if file is not None:
                now = await self._aside(folders.listing, Path(file.path))
                if now == before and now != tried and now.files:
                    tried = now
                    await self.reload(Path(file.path))
                before = now
            try:
                await self.look()
            except Exception:  # a bug of ours must not be the end of all looks
                log.exception("looking for new versions failed")

    async def look(self) -> None:
        """See what has changed and follow it.  A disk that can't be read changes nothing."""
        async with self._changing:
            try:
                specs = await self._aside(self._sources.specs)
            except OSError as error:
                log.warning("the repository can't be read, so nothing changes", path=str(error.filename), reason=error.strerror)
                return
            for spec in specs:
                if spec.name not in self._models:
                    self._models[spec.name] = Model(spec)
            for model in list(self._models.values()):
                if not model.stopped:
                    await self._bring(model)

    async def reload(self, file: Path) -> bool:
        """Take in a configuration file anew.  Where something is wrong with it nothing changes, and the log says what."""
        try:
            specs = await self._aside(model_config.read, file)
            await self.apply(specs)
        except (ModelLoadError, InvalidRequest) as error:
            log.error("the configuration was not applied in whole", file=str(file), reason=str(error))
            return False
        log.info("configuration applied", file=str(file), models=[spec.name for spec in specs])
        return True

    async def configure(self, specs: Sequence[ModelSpec]) -> None:
        """Serve these models and no others, as a client asks (TensorFlow Serving's HandleReloadConfigRequest).

        Called from the event loop with `ModelSpec(name, Path(base_path), policy, labels)` for each model; `local_path(base_path,
        Path())`, `policy_of("specific:1,3")` and `labels_of(["stable=1"])` make the parts and raise ValueError, which is the
        client's InvalidRequest.  Returns when all is applied: models that left are out, every wanted version answers, and labels
        have moved.  Raises ServingError: NotAllowed without --enable_model_control, NotSupported with several workers,
        InvalidRequest where a model could not be loaded or a label has no ready version.  What could be applied then is, and
        whatever answered before still does.
        """
        self.check_control()
        try:
            whole = model_config.checked(specs, "the configuration")
        except ModelLoadError as error:
            raise InvalidRequest(str(error)) from None
        await self._to_its_end(self.apply(whole))

    async def _to_its_end(self, change: Coroutine[Any, Any, None]) -> None:
        """A change that somebody asked for, made in whole, also where nobody waits for it any more."""
        task = asyncio.get_running_loop().create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        await asyncio.shield(task)

    async def apply(self, specs: Sequence[ModelSpec]) -> None:
        """Serve these models and no others; InvalidRequest says which could not be had as they were wanted."""
        async with self._changing:
            self._sources = Sources(tuple(specs))
            named = {spec.name for spec in specs}
            faults = []
            for spec in specs:
                known = self._models.get(spec.name)
                model = Model(spec) if known is None else replace(known, spec=spec, stopped=False, told=set())
                self._models[spec.name] = model
                await self._bring(model, at_once=True)
                faults += self._faults(spec)
            for name in [name for name in self._models if name not in named]:
                self._let_go(self._models.pop(name))
        if faults:
            raise InvalidRequest("; ".join(faults))

    async def load(self, name: str) -> None:
        """Load a model, or what has changed of it, and return when it answers.

        Raises NotAllowed and NotSupported (see `configure`), ModelNotFound, and InvalidRequest with the reason where it can't be
        loaded; what answered before still does.
        """
        self.check_control()
        await self._to_its_end(self._load_now(name))

    async def _load_now(self, name: str) -> None:
        async with self._changing:
            try:
                specs = {spec.name: spec for spec in await self._aside(self._sources.specs)}
            except OSError as error:
                raise InvalidRequest(f"can't read the repository at {error.filename}: {error.strerror}") from None
            model = self._models.get(name)
            if model is None:
                model = self._models[name] = Model(self._named(name, specs))
            model.stopped = False
            model.told.clear()
            await self._bring(model, at_once=True)
            faults = self._faults(model.spec)
        if faults:
            raise InvalidRequest("; ".join(faults))

    async def unload(self, name: str) -> None:
        """Have a model answer no more; those who wait for it get their answers.  Raises as `load` does."""
        self.check_control()
        await self._to_its_end(self._unload_now(name))

    async def _unload_now(self, name: str) -> None:
        async with self._changing:
            model = self._models.get(name)
            if model is None:
                raise self._unknown(name, self._models)
            model.stopped = True
            self._let_go(model)

    async def close(self) -> None:
        """Let every model give back what it holds, for a while."""
        await self._loader.close_all()

    async def _bring(self, model: Model, *, at_once: bool = False, early: bool = False) -> None:
        """Load what is wanted of a model and due, let labels follow, and then let go of what is not wanted."""
        spec, registry = model.spec, self._registry
        try:
            there = await self._aside(folders.versions_in, spec.path)
        except OSError as error:
            model.tell_once("the model's folder can't be read, so nothing changes", path=str(spec.path), reason=error.strerror)
            if not registry.serves(spec.name):
                self._loader.fail(spec.name, "", f"can't read {spec.path}: {error.strerror}")
            return
        chosen = wanted(spec.policy, spec.labels, there)
        for version in chosen:
            now, before = there[version], model.looks.get(version)
            entry = registry.known(spec.name, version)
            # what is only known by name is as new as what is not known
            state = entry.state if entry is not None and (entry.state is not State.LOADING) else None
            if folders.is_due(state, before, now, at_once=at_once):
                fine = await self._load(model, version, now)
                model.looks[version] = Look(now, now, early or not fine)
            else:
                model.looks[version] = before.seen(now) if before else Look(now)
        for version in [v for v in model.looks if v not in there]:
            del model.looks[version]
        self._point_labels(model)
        self._retire(model, chosen, there)
        if not chosen and not registry.serves(spec.name):
            self._loader.fail(spec.name, "", _nothing(spec, there))
        elif registry.serves(spec.name) and not registry.is_starting and spec.required:
            # from now on this process is not whole without it
            registry.required.add(spec.name)
        if not spec.required:
            registry.required.discard(spec.name)

    async def _load(self, model: Model, version: str, now: Listing) -> bool:
        """Whether what is there now answers."""
        spec = model.spec
        placeholder = self._registry.known(spec.name, "")
        if version and placeholder is not None and placeholder.handle is None:
            self._loader.forget(placeholder)
        entry = await self._loader.load(spec.name, version, partial(find_model, Path(now.path), spec.runtime or None))
        model.told.clear()
        # of one model alone that fails at the start, the process itself says why it ends
        if entry.reason and not (self._registry.is_starting and len(self._models) == 1):
            log.error("a version could not be loaded", model=spec.name, version=version, reason=entry.reason)
        return not entry.reason

    def _point_labels(self, model: Model) -> None:
        """Let labels point to what they are to point to, where that is ready."""
        spec, registry = model.spec, self._registry
        now, ready = registry.labels(spec.name), self._ready(spec.name)
        labels = labels_now(spec.labels, now, ready)
        if labels != now:
            registry.set_labels(spec.name, labels)
            log.info("labels moved", model=spec.name, labels=labels)
        for label, version in spec.labels.items():
            if labels.get(label) != version:
                model.tell_once(f"label {label} waits for version {version}", points_to=labels.get(label, "nothing"))

    def _retire(self, model: Model, chosen: Sequence[str], there: Iterable[str]) -> None:
        spec, registry = model.spec, self._registry
        going = unwanted(self._ready(spec.name), chosen, registry.labels(spec.name).values())
        for version in self._ready(spec.name):
            if version not in there and version not in going:
                model.tell_once(
                    f"version {version or '(none)'} has gone from {spec.path} and is kept: nothing else is there for it"
                )
        for entry in registry.versions(spec.name) if spec.name in registry.names() else ():
            if entry.version in going:
                self._loader.unload(entry, self._after)
            elif entry.state is State.FAILED and entry.version and entry.version not in chosen:
                # nobody wants it any more
                self._loader.forget(entry)

    def _after(self, entry: Version) -> None:
        """A version has gone: it is told of for a while, unless its model was to go altogether."""
        name = entry.name
        unloaded = [v for v in self._registry.versions(name) if v.state is State.UNLOADED]
        for one in unloaded[:-REMEMBERED] if name in self._models else unloaded:
            self._loader.forget(one)

    def _let_go(self, model: Model) -> None:
        name = model.spec.name
        self._registry.required.discard(name)
        model.looks.clear()
        for entry in self._registry.versions(name) if name in self._registry.names() else ():
            self._loader.unload(entry, self._after)

    def _ready(self, name: str) -> list[str]:
        return (
            [v.version for v in self._registry.versions(name) if v.handle is not None] if name in self._registry.names() else []
        )

    def _faults(self, spec: ModelSpec) -> list[str]:
        """What is not as it is wanted, of a model that has just been brought."""
        versions = self._registry.versions(spec.name)
        faults = [
            f"model {spec.name!r}{f' version {v.version}' if v.version else ''} could not be loaded: {v.reason}"
            for v in versions
            if v.reason and v.state is not State.UNLOADED
        ]
        now = self._registry.labels(spec.name)
        waiting = [(label, version) for label, version in spec.labels.items() if now.get(label) != version]
        return faults + [
            f"label {name!r} of model {spec.name!r} points to version {v}, which is not ready" for name, v in waiting
        ]

    def _named(self, name: str, specs: dict[str, ModelSpec]) -> ModelSpec:
        if name not in specs:
            raise self._unknown(name, {**self._models, **specs})
        return specs[name]

    def _unknown(self, name: str, known: Iterable[str]) -> ModelNotFound:
        shown, names = name[:80], sorted(known)
        there = ", ".join(names[:20]) or "none"
        return ModelNotFound(f"the repository has no model {shown!r}{did_you_mean(shown, names)}; it has: {there}")

    def check_control(self) -> None:
        """NotAllowed, NotSupported: see `configure`."""
        if not self._control:
            raise NotAllowed("loading and unloading models is off here; start the server with --enable_model_control to allow it")
        if not self._alone:
            raise NotSupported(
                "loading and unloading by request reaches one of several --workers only; change the files instead: every worker"
                " looks at them (--poll_interval, --model_config_file)"
            )

    async def _aside(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loader.executor, work, *args)


def _nothing(spec: ModelSpec, there: Iterable[str]) -> str:
    """Why there is no version to load."""
    found = ", ".join(sorted(there)[:20])
    return f"none of the versions in {spec.path} is wanted: it has {found}, and the policy is {spec.policy}"


def no_parameters(found: Iterable[str], known: Iterable[str]) -> None:
    """NotSupported where a client wants more than that a model is loaded from its files, or not any more."""
    for name in found:
        if name == "config" or name.startswith("file:"):
            raise NotSupported(
                f"parameter {name[:80]!r} would bring a model's configuration or files with the request, which this server"
                " does not take: put them into the repository's folder, and load the model then"
            )
        if name not in known:
            raise InvalidRequest(f"unknown parameter {name[:80]!r}{did_you_mean(name[:80], known)}")
