"""What a folder is taken for, and when a version in it is loaded: tables, and the looks at real folders."""

import os

import pytest

from server.folders import Listing, Look, Shape, is_due, listing, models_in, shape, tree, versions_in
from server.models import State

FILE = None
MODEL, VERSIONS, REPOSITORY = Shape.MODEL, Shape.VERSIONS, Shape.REPOSITORY
SAVED_MODEL = {"saved_model.pb": FILE, "variables": {"variables.index": FILE}, "assets": {}}


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ({}, MODEL),
        ({"model.skops": FILE}, MODEL),
        ({"model.onnx": FILE, "weights.bin": FILE}, MODEL),
        (SAVED_MODEL, MODEL),
        ({"exported": SAVED_MODEL}, MODEL),
        # a Python class, whatever lies beside it
        ({"model.py": FILE, "data": {"2024": {}}}, MODEL),
        ({"model.py": FILE, "2024": {"rows.csv": FILE}}, MODEL),
        ({"saved_model.pbtxt": FILE, "1": {}}, MODEL),
        ({"model.skops": FILE, "1": {"model.skops": FILE}}, MODEL),
        # as TensorFlow Serving's base path
        ({"1": SAVED_MODEL}, VERSIONS),
        ({"1": {}, "0002": {}}, VERSIONS),
        ({"1": {"model.skops": FILE}, "README.md": FILE, "labels.txt": FILE, "config.pbtxt": FILE, "LICENSE": FILE}, VERSIONS),
        ({"1": {}, "tmp2": {}, ".DS_Store": FILE, "_copying.bin": FILE, "2.tmp": {}}, VERSIONS),
        ({"1": FILE}, MODEL),
        # as Triton's model repository
        ({"iris": {"1": {"model.skops": FILE}}}, REPOSITORY),
        ({"iris": {"1": {}, "config.pbtxt": FILE}, "new": {}, "README.md": FILE}, REPOSITORY),
        ({"iris": {"1": {}}, "whole": {"model.skops": FILE}}, REPOSITORY),
        ({"iris": {"model.skops": FILE}}, MODEL),
        ({".git": {"1": {}}}, MODEL),
        ({"iris.tmp": {"1": {}}}, MODEL),
        ({"iris": {"1": {}}, "models.config": FILE}, REPOSITORY),
        ({"iris": {"1": {}}, "train.py": FILE}, MODEL),
    ],
)
def test_a_folder_is_a_repository_where_folders_with_numbers_say_so_and_no_model_lies_beside_them(folder, kind):
    assert shape(folder) is kind


def test_the_models_of_a_repository_are_its_folders_with_versions():
    folder = {"b": {"1": {}}, "a": {"2": {}}, "whole": {"x.onnx": FILE}, ".c": {"1": {}}, "d.part": {"1": {}}, "e": {}, "f": FILE}
    assert models_in(folder) == ["a", "b"]


OLD, NEW = Listing("p", (("m", 1, 1),)), Listing("p", (("m", 2, 2),))
EMPTY = Listing("p", ())


@pytest.mark.parametrize(
    ("state", "before", "now", "at_once", "due"),
    [
        # new: the same in two looks
        (None, None, NEW, False, False),
        (None, Look(OLD), NEW, False, False),
        (None, Look(NEW), NEW, False, True),
        (None, Look(EMPTY), EMPTY, False, False),
        (None, None, NEW, True, True),
        (None, None, EMPTY, True, True),
        (State.UNLOADED, Look(NEW), NEW, False, True),
        (State.LOADING, Look(NEW), NEW, False, False),
        (State.DRAINING, Look(NEW), NEW, False, True),
        # failed: again when its files change, or when somebody asks
        (State.FAILED, Look(NEW, NEW), NEW, False, False),
        (State.FAILED, Look(OLD, OLD), NEW, False, False),
        (State.FAILED, Look(NEW, OLD), NEW, False, True),
        (State.FAILED, Look(NEW, NEW), NEW, True, True),
        # ready: left alone, unless it may have been half there when it was loaded
        (State.READY, Look(NEW, NEW), NEW, False, False),
        (State.READY, Look(NEW, OLD), NEW, False, False),
        (State.READY, Look(OLD, OLD, True), NEW, False, False),
        (State.READY, Look(NEW, OLD, True), NEW, False, True),
        (State.READY, Look(NEW, NEW, True), NEW, False, False),
        (State.READY, Look(NEW, NEW), NEW, True, False),
        (State.READY, Look(NEW, OLD), NEW, True, True),
    ],
)
def test_a_version_is_loaded_once_it_is_whole_and_again_only_for_a_reason(state, before, now, at_once, due):
    assert is_due(state, before, now, at_once=at_once) is due


def test_what_was_loaded_early_and_has_not_changed_by_the_next_look_is_whole():
    assert Look(NEW, NEW, True).seen(NEW) == Look(NEW, NEW, False)
    assert Look(OLD, OLD, True).seen(NEW) == Look(NEW, OLD, True)


def test_a_listing_changes_with_any_file_and_not_with_what_is_hidden(tmp_path):
    (tmp_path / "variables").mkdir()
    file = tmp_path / "variables" / "data"
    file.write_bytes(b"1")
    first = listing(tmp_path)
    for hidden in (".DS_Store", "__pycache__/model.pyc", ".cache/x"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text("")
    assert listing(tmp_path) == first
    os.utime(file, ns=(1, 1))
    second = listing(tmp_path)
    file.write_bytes(b"12")
    os.utime(file, ns=(1, 1))
    third = listing(tmp_path)
    assert len({first, second, third}) == 3
    assert [(name, size) for name, size, _ in third.files] == [("variables/data", 2)]


def test_the_versions_of_a_folder_are_those_with_numbers(tmp_path):
    for name in ("1", "007", "7", "tmp3", ".4", "5.tmp", "v6"):
        (tmp_path / name).mkdir()
    (tmp_path / "8").write_text("a file")
    found = versions_in(tmp_path)
    assert {version: os.path.basename(seen.path) for version, seen in found.items()} == {"1": "1", "7": "7"}


def test_a_model_that_is_no_folder_of_versions_has_one_version_without_a_name(tmp_path):
    (tmp_path / "model.skops").write_bytes(b"12")
    assert [(name, size) for name, size, _ in versions_in(tmp_path)[""].files] == [("model.skops", 2)]
    assert [size for _, size, _ in versions_in(tmp_path / "model.skops")[""].files] == [2]
    (tmp_path / "model.py").write_bytes(b"123")
    assert [size for _, size, _ in versions_in(tmp_path / "model.py:Class")[""].files] == [3]
    assert versions_in(tmp_path / "absent") == {"": Listing(str(tmp_path / "absent"), ())}


def test_a_tree_is_as_deep_as_it_was_asked_for(tmp_path):
    (tmp_path / "iris" / "1" / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    assert tree(tmp_path) == {"file": None, "iris": {"1": {"deep": {}}}}
    assert tree(tmp_path, 0) == {"file": None, "iris": {}}
