"""What KServe's variables say of headers and of files: tables, and a server that sees what it is sent."""

import json

import pytest

from server.errors import FetchFailed
from server.storage.bring import Options, get
from server.storage.download import Patience
from server.storage.variables import Patterns, headers, patterns
from tests.server.storage.origin import Origin, answer, redirect, status

NOW = Options(patience=Patience(pause=0.0, tries=2))
SECRET = "Bearer canary-of-a-secret"


def test_headers_are_those_of_the_host():
    environ = {"models.example.org-headers": f'{{"Authorization": "{SECRET}", "x-team": "a b"}}', "b-headers": ""}
    assert headers("models.example.org", environ) == {"Authorization": SECRET, "x-team": "a b"}
    assert headers("MODELS.example.org", environ) == {"Authorization": SECRET, "x-team": "a b"}
    for host in ("example.org", "b", "c"):
        assert headers(host, environ) == {}


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (SECRET, "no JSON object of texts"),
        (f'["{SECRET}"]', "no JSON object of texts"),
        ('{"x": 1}', "no JSON object of texts"),
        ('{"Host": "elsewhere"}', "a header 'Host', which can't be sent"),
        ('{"content-length": "5"}', "which can't be sent"),
        ('{"Transfer-Encoding": "chunked"}', "which can't be sent"),
        ('{"x y": "1"}', "which can't be sent"),
        ('{"x\\r\\nHost": "1"}', "which can't be sent"),
        (json.dumps({"authorization": f"{SECRET}\r\nHost: elsewhere"}), "no header can have"),
        (json.dumps({"authorization": f"{SECRET}ü"}), "no header can have"),
    ],
)
def test_what_can_be_no_header_is_refused_and_not_repeated(said, says):
    with pytest.raises(FetchFailed) as caught:
        headers("h", {"h-headers": said})
    assert says in str(caught.value)
    assert "canary" not in str(caught.value)


def test_headers_go_with_each_try_to_their_server_and_to_no_other(origin, tmp_path, monkeypatch):
    monkeypatch.setenv("127.0.0.1-headers", json.dumps({"Authorization": SECRET}))
    other = Origin()
    try:
        there = other.give("/final.onnx", answer(b"x"))
        origin.give("/again.onnx", redirect(there))
        assert get(origin.give("/m.onnx", status(503), redirect("/again.onnx")), tmp_path, NOW).size == 1
    finally:
        other.close()
    assert [(path, sent.get("authorization")) for path, sent in origin.seen] == [
        ("/m.onnx", SECRET), ("/m.onnx", SECRET), ("/again.onnx", SECRET),
    ]  # fmt: skip
    assert [sent.get("authorization") for _, sent in other.seen] == [None]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", ()),
        (" , ", ()),
        ("*.onnx", ("*.onnx",)),
        ("*.onnx, labels/", ("*.onnx", "labels/")),
        ('["a,b", "c"]', ("a,b", "c")),
        ("[]", ()),
    ],
)
def test_patterns_are_a_json_list_or_stand_between_commas(said, expected):
    assert patterns({"STORAGE_ALLOW_PATTERNS": said}) == Patterns(allow=expected)
    assert patterns({"STORAGE_IGNORE_PATTERNS": said}) == Patterns(ignore=expected)


@pytest.mark.parametrize("said", ["[1]", '["a"', '[["a"]]'])
def test_a_list_that_is_none_is_refused(said):
    with pytest.raises(FetchFailed, match="STORAGE_IGNORE_PATTERNS is no JSON list of texts"):
        patterns({"STORAGE_IGNORE_PATTERNS": said})


@pytest.mark.parametrize(
    ("allow", "ignore", "path", "kept"),
    [
        ((), (), "a/b.onnx", True),
        (("*.onnx",), (), "a/b.onnx", True),
        (("*.onnx",), (), "b.ONNX", False),
        (("b.onnx",), (), "a/b.onnx", False),
        (("a/",), (), "a/b/c", True),
        (("a/",), (), "ab", False),
        ((), ("*.bin",), "x.bin", False),
        (("*",), ("x.*",), "x.bin", False),
        (("x.bin",), ("*.bin",), "x.bin", False),
    ],
)
def test_a_pattern_is_of_the_whole_path_and_what_is_ignored_is_not_allowed(allow, ignore, path, kept):
    assert Patterns(allow, ignore).keep(path) is kept
