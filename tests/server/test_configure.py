"""`Repository.configure`, as TensorFlow Serving's clients come to call it: a list of models, and what is then."""

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server import warmup
from server.errors import InvalidRequest, NotAllowed, NotSupported
from server.loading import BatchOptions, Loader
from server.model_config import ModelSpec
from server.models import Registry, State
from server.repository import Repository
from server.runtime import LoadOptions
from server.sources import Sources
from server.telemetry import Metrics
from server.versions import policy_of

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def spec(folder: Path, policy: str = "latest", **labels: str) -> ModelSpec:
    return ModelSpec(folder.name, folder, policy_of(policy), labels)


@pytest.fixture
def folder(tmp_path):
    """Models `a` (versions 1 and 2) and `b` (version 1), and `bad`."""
    for where in ("a/1", "a/2", "b/1"):
        (tmp_path / where).mkdir(parents=True)
        shutil.copy(EXAMPLES / "mlp.onnx", tmp_path / where)
    (tmp_path / "bad/1").mkdir(parents=True)
    (tmp_path / "bad/1/model.onnx").write_text("no model")
    return tmp_path


def run(folder, use, **options):
    """`use(repository, registry)` of a process that serves model `a`."""

    async def main() -> None:
        registry = Registry()
        with ThreadPoolExecutor(2) as executor:
            loader = Loader(registry, Metrics(), executor, LoadOptions(), BatchOptions(), warmup.replay)
            repository = Repository(loader, registry, **{"control": True, **options})
            await repository.start(Sources((spec(folder / "a"),)))
            assert registry.is_ready()
            await use(repository, registry)
            await repository.close()

    asyncio.run(main())


def ready(registry) -> set[tuple[str, str]]:
    return {(v.name, v.version) for v in registry.all_versions() if v.state is State.READY}


def test_when_it_returns_what_was_asked_for_answers_and_nothing_else(folder):
    async def use(repository, registry):
        await repository.configure([spec(folder / "a", "all", stable="1"), spec(folder / "b")])
        assert ready(registry) == {("a", "1"), ("a", "2"), ("b", "1")}
        assert registry.ready("a", "stable").version == "1"
        await repository.configure([spec(folder / "a", "specific:1", stable="1", canary="2")])
        assert ready(registry) == {("a", "1"), ("a", "2")}
        assert registry.labels("a") == {"stable": "1", "canary": "2"}
        await repository.configure([spec(folder / "b")])
        assert ready(registry) == {("b", "1")}
        assert registry.is_ready()

    run(folder, use)


@pytest.mark.parametrize(
    ("names", "text", "after"),
    [
        (["a", "bad"], "model 'bad' version 1 could not be loaded: cannot read", {("a", "2")}),
        (["a", "absent"], "model 'absent' could not be loaded: no model found at", {("a", "2")}),
        # nothing is done of what contradicts itself
        (["b", "b"], "model 'b' is given twice", {("a", "2")}),
    ],
)
def test_what_can_not_be_had_is_told_and_what_answered_still_does(folder, names, text, after):
    async def use(repository, registry):
        with pytest.raises(InvalidRequest, match=text):
            await repository.configure([spec(folder / name) for name in names])
        assert ready(registry) == after

    run(folder, use)


def test_a_label_of_a_version_that_is_not_there_is_told_and_stays_where_it_was(folder):
    async def use(repository, registry):
        await repository.configure([spec(folder / "a", stable="2")])
        with pytest.raises(InvalidRequest, match="label 'stable' of model 'a' points to version 3, which is not ready"):
            await repository.configure([spec(folder / "a", stable="3")])
        assert registry.labels("a") == {"stable": "2"}

    run(folder, use)


def test_a_model_from_another_folder_takes_the_place_of_the_one_of_its_name(folder):
    async def use(repository, registry):
        before = registry.ready("a")
        (folder / "elsewhere/2").mkdir(parents=True)
        shutil.copy(EXAMPLES / "mlp.onnx", folder / "elsewhere/2")
        await repository.configure([ModelSpec("a", folder / "elsewhere")])
        assert registry.ready("a") is not before
        assert ready(registry) == {("a", "2")}

    run(folder, use)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [({"control": False}, NotAllowed, "--enable_model_control"), ({"alone": False}, NotSupported, "--workers")],
)
def test_it_is_for_those_who_may_and_for_one_process(folder, options, error, text):
    async def use(repository, registry):
        with pytest.raises(error, match=text):
            await repository.configure([])
        assert ready(registry) == {("a", "2")}

    run(folder, use, **options)
