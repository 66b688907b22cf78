"""Which versions are wanted, which go, and where labels point: tables."""

import pytest

from server.versions import Policy, label_of, labels_now, labels_of, number, policy_of, unwanted, wanted

THERE = ["1", "2", "10", "3"]


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("latest", ["10"]),
        ("latest:2", ["10", "3"]),
        ("latest:9", ["10", "3", "2", "1"]),
        ("all", ["10", "3", "2", "1"]),
        ("specific:1,3", ["3", "1"]),
        ("specific:2, 0010", ["10", "2"]),
        ("specific:7", []),
    ],
)
def test_a_policy_chooses_among_what_is_there_the_newest_first(text, chosen):
    assert policy_of(text).choose(THERE) == chosen


@pytest.mark.parametrize("text", ["latest", "all", "specific:1"])
def test_a_model_without_versions_is_wanted_whatever_the_policy(text):
    assert policy_of(text).choose([""]) == [""]


@pytest.mark.parametrize(
    "text",
    ["", "newest", "latest:", "latest:0", "latest:-1", "latest:x", "all:1", "specific", "specific:", "specific:1,x", "ALL"],
)
def test_what_is_no_policy_is_told_what_one_is(text):
    with pytest.raises(ValueError, match="expected latest, latest:2, all or specific:1,3"):
        policy_of(text)


def test_a_policy_is_written_as_it_is_read():
    for text in ("latest:1", "latest:3", "all", "specific:1,3"):
        assert str(policy_of(text)) == text


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("1", "1"),
        ("0", "0"),
        ("00000123", "123"),
        ("1700000000", "1700000000"),
        (str(2**63 - 1), str(2**63 - 1)),
        (str(2**63), None),
        ("9" * 5000, None),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.0", None),
        ("v1", None),
        ("tmp3", None),
        ("1_000", None),
        ("٣", None),
        ("²", None),
    ],
)
def test_a_folder_is_a_version_where_its_name_is_a_number(name, version):
    assert number(name) == version


@pytest.mark.parametrize(
    ("name", "version", "text"),
    [
        ("1", 1, "not digits alone"),
        ("", 1, "is no label"),
        ("a b", 1, "is no label"),
        ("a/b", 1, "is no label"),
        (".hidden", 1, "is no label"),
        ("x" * 64, 1, "is no label"),
        ("stable", "newest", "expected a version's number"),
        ("stable", -1, "expected a version's number"),
        ("stable", True, "expected a version's number"),
        ("stable", None, "expected a version's number"),
    ],
)
def test_what_is_no_label_is_told_why(name, version, text):
    with pytest.raises(ValueError, match=text):
        label_of(name, version)


def test_labels_come_from_texts():
    assert labels_of(["stable=1", "canary=02"]) == {"stable": "1", "canary": "2"}
    for texts, wrong in ((["stable"], "expected NAME=VERSION"), (["a=1", "a=2"], "given twice")):
        with pytest.raises(ValueError, match=wrong):
            labels_of(texts)


@pytest.mark.parametrize(
    ("policy", "labels", "there", "versions"),
    [
        (Policy(), {}, ["1", "2"], ["2"]),
        # what a label points to is served, whatever the policy says
        (Policy(), {"stable": "1"}, ["1", "2"], ["2", "1"]),
        (Policy(), {"stable": "2"}, ["1", "2"], ["2"]),
        (Policy(), {"stable": "7"}, ["1", "2"], ["2"]),
        (Policy("specific", 0, ("1",)), {"canary": "3"}, ["1", "2", "3"], ["3", "1"]),
    ],
)
def test_what_is_wanted_is_what_the_policy_chooses_and_what_labels_point_to(policy, labels, there, versions):
    assert wanted(policy, labels, there) == versions


@pytest.mark.parametrize(
    ("asked", "now", "ready", "labels"),
    [
        ({"a": "1"}, {}, ["1"], {"a": "1"}),
        ({"a": "2"}, {"a": "1"}, ["1", "2"], {"a": "2"}),
        # until the other is ready it stays where it is
        ({"a": "2"}, {"a": "1"}, ["1"], {"a": "1"}),
        ({"a": "2"}, {}, ["1"], {}),
        ({"a": "2"}, {"a": "1"}, [], {}),
        ({}, {"a": "1"}, ["1"], {}),
        ({"a": "1", "b": "2"}, {"a": "2", "b": "1"}, ["1", "2"], {"a": "1", "b": "2"}),
    ],
)
def test_a_label_points_only_to_what_is_ready(asked, now, ready, labels):
    assert labels_now(asked, now, ready) == labels


@pytest.mark.parametrize(
    ("ready", "chosen", "labelled", "going"),
    [
        (["1", "2"], ["2"], [], ["1"]),
        (["1", "2", "3"], ["3"], [], ["1", "2"]),
        # the new one is not ready: the old stays
        (["1"], ["2"], [], []),
        (["1", "2"], ["3"], [], ["1"]),
        (["1", "2", "3"], ["5", "4"], [], ["1"]),
        # all have gone from the disk: the newest stays
        (["1", "2"], [], [], ["1"]),
        (["1"], [], [], []),
        (["1", "2"], ["2"], ["1"], []),
        ([], ["1"], [], []),
        ([""], [], [], []),
        (["", "1"], ["1"], [], [""]),
    ],
)
def test_the_old_stays_for_each_that_is_wanted_and_not_ready_and_the_last_stays_always(ready, chosen, labelled, going):
    assert unwanted(ready, chosen, labelled) == going
