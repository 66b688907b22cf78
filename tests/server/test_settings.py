"""Settings from flags and variables: what is given is what is set, there and back, and mistakes are named."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.settings import Settings, cpu_budget, from_flags, inherited, to_flags


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        ([], "http_port", 8080),
        (["--http_port", "9"], "http_port", 9),
        (["--http-port", "9"], "http_port", 9),
        (["--http_port=9"], "http_port", 9),
        (["--http-port=1", "--http_port=2"], "http_port", 2),
        (["--timeout", "1.5"], "timeout", 1.5),
        (["--timeout=0"], "timeout", 0.0),
        (["--enable_grpc=false"], "enable_grpc", False),
        (["--enable-grpc", "no"], "enable_grpc", False),
        (["--enable_grpc"], "enable_grpc", True),
        (["--enable_grpc=TRUE"], "enable_grpc", True),
        ([], "trust_pickle", None),
        (["--trust-pickle"], "trust_pickle", True),
        (["--trust_pickle", "off"], "trust_pickle", False),
        (["--model_name", "a b"], "model_name", "a b"),
        (["--model_name=-x"], "model_name", "-x"),
        (["--model_name="], "model_name", ""),
        (["--log_format", "json"], "log_format", "json"),
        (["--runtime_option", "a=1", "--runtime-option=b=c=d"], "runtime_options", {"a": "1", "b": "c=d"}),
        ([], "version_policy", "latest"),
        (["--version-policy", "specific:3,1"], "version_policy", "specific:3,1"),
        (["--label", "stable=1", "--label=canary=2"], "label", ("stable=1", "canary=2")),
        (["--root_path", "/a/b"], "root_path", "/a/b"),
        (["--root_path", "a/b/"], "root_path", "/a/b"),
        (["--root_path", "/"], "root_path", ""),
    ],
)
def test_a_flag_sets_what_it_names_in_either_spelling(argv, name, value):
    assert getattr(from_flags(argv), name) == value


@pytest.mark.parametrize(
    ("variables", "argv", "name", "value"),
    [
        ({"SERVER_HTTP_PORT": "9"}, [], "http_port", 9),
        ({"SERVER_HTTP_PORT": "9"}, ["--http_port=10"], "http_port", 10),
        ({"SERVER_ENABLE_GRPC": "false"}, [], "enable_grpc", False),
        ({"SERVER_ENABLE_GRPC": "false"}, ["--enable_grpc"], "enable_grpc", True),
        ({"SERVER_RUNTIME_OPTION": '["a=1", "b=2"]'}, [], "runtime_options", {"a": "1", "b": "2"}),
        ({"SERVER_NO_SUCH_THING": "1"}, [], "http_port", 8080),
        ({"HTTP_PORT": "9"}, [], "http_port", 8080),
    ],
)
def test_a_variable_sets_it_too_and_a_flag_wins(monkeypatch, variables, argv, name, value):
    for variable, text in variables.items():
        monkeypatch.setenv(variable, text)
    assert getattr(from_flags(argv), name) == value


@pytest.mark.parametrize(
    ("argv", "texts"),
    [
        (["--http_port", "abc"], ["--http_port", "'abc'"]),
        (["--http_port", "70000"], ["--http_port", "65535", "70000"]),
        (["--http_port=-1"], ["--http_port", "-1"]),
        (["--timeout", "soon"], ["--timeout", "'soon'"]),
        (["--timeout", "nan"], ["--timeout", "nan"]),
        (["--max_body_bytes", "0"], ["--max_body_bytes", "0"]),
        (["--enable_grpc", "perhaps"], ["--enable_grpc", "'perhaps' is neither true nor false"]),
        (["--log_format", "xml"], ["--log_format", "'json'", "'xml'"]),
        (["--output", "loud"], ["--output", "'loud'"]),
        (["--model_name", "a/b"], ["--model_name", "'a/b'"]),
        (["--version_policy", "newest"], ["--version_policy", "'newest'", "latest:2, all or specific:1,3"]),
        (["--version_policy", "latest:0"], ["--version_policy", "'latest:0'"]),
        (["--label", "stable"], ["--label", "'stable' is no label", "stable=1"]),
        (["--label", "7=1"], ["--label", "'7' is no label", "not digits alone"]),
        (["--label", "a=1", "--label", "a=2"], ["--label", "'a' is given twice"]),
        (["--poll_interval=-1"], ["--poll_interval", "-1"]),
        (["--workers", "0"], ["--workers", "0"]),
        (["--http_port"], ["--http_port", "expected one argument"]),
        (["--no_such_flag"], ["--no_such_flag"]),
        (["--http"], ["--http"]),
        (["--trust"], ["--trust"]),
        (["model.skops"], ["model.skops"]),
    ],
)
def test_a_mistake_ends_with_2_and_names_the_flag_and_the_value(capsys, argv, texts):
    with pytest.raises(SystemExit) as ended:
        from_flags(argv)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    for text in texts:
        assert text in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("variable", "value", "texts"),
    [
        ("SERVER_HTTP_PORT", "abc", ["http_port", "'abc'"]),
        ("SERVER_TIMEOUT", "-1", ["timeout", "-1"]),
        ("SERVER_RUNTIME_OPTION", "a=1", ["runtime_option"]),
    ],
)
def test_a_mistake_in_a_variable_is_named_too(monkeypatch, capsys, variable, value, texts):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        from_flags([])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert all(text in err for text in texts)


def test_help_names_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as ended:
        from_flags(["--help"])
    assert ended.value.code == 0
    page = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name}" in page
        assert f"(default: {field.default!r})" in page


# argparse can't be given these by anybody, since a process' arguments end at a zero byte
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
finite = st.floats(0, 1e9, allow_nan=False)
positive = st.floats(1e-6, 1e9, allow_nan=False)
VALUES = {
    **dict.fromkeys(("model_dir", "model_config_file", "runtime", "host", "metrics_dir"), texts),
    "version_policy": st.sampled_from(["latest", "latest:3", "all", "specific:1,3"]),
    "label": st.lists(st.sampled_from(["stable=1", "x=2", "a.b=30"]), max_size=3, unique=True).map(tuple),
    "model_name": texts.filter(lambda t: "/" not in t and "\n" not in t),
    "root_path": st.sampled_from(["", "/a", "/a/b"]),
    **dict.fromkeys(("http_port", "grpc_port"), st.integers(0, 65535)),
    **dict.fromkeys(("threads", "concurrency", "max_batch_size", "max_queue"), st.integers(0, 10**6)),
    "max_model_bytes": st.integers(1, 10**12),
    **dict.fromkeys(("max_body_bytes", "max_headers", "max_url_bytes", "limit_connections", "workers"), st.integers(1, 10**9)),
    "max_header_bytes": st.integers(1024, 10**9),
    **dict.fromkeys(("timeout", "drain_delay", "grace", "poll_interval"), finite),
    **dict.fromkeys(("receive_timeout", "send_timeout", "timeout_keep_alive", "max_model_seconds"), positive),
    "trust_pickle": st.none() | st.booleans(),
    "access_log_sample": st.floats(0, 1, allow_nan=False),
    "trace_sample": st.none() | st.floats(0, 1, allow_nan=False),
    "metrics_compat": st.sampled_from(["", "tfs", "triton,tfs,kserve"]),
    "log_format": st.sampled_from(["auto", "json", "text"]),
    "grpc_engine": st.sampled_from(["fast", "grpcio"]),
    "output": st.sampled_from(["text", "json", "none"]),
    "runtime_option": st.lists(texts.map("name={}".format), max_size=3).map(tuple),
}
VALUES |= {name: st.booleans() for name, field in Settings.model_fields.items() if field.annotation is bool}


@given(st.fixed_dictionaries({}, optional=VALUES))
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_flags_made_from_settings_give_the_same_settings(values):
    wanted = Settings(**values)
    assert from_flags(to_flags(wanted)) == wanted


def test_every_setting_is_in_the_table_above_and_defaults_need_no_flags():
    assert set(VALUES) == set(Settings.model_fields)
    assert to_flags(Settings()) == []


def test_a_process_that_flags_tell_everything_inherits_no_settings(monkeypatch):
    """A worker of `SERVER_WORKERS=2` that read this again would start workers, and these theirs."""
    monkeypatch.setenv("SERVER_WORKERS", "2")
    monkeypatch.setenv("server_output", "text")
    monkeypatch.setenv("OTHER", "kept")
    found = inherited()
    assert found["OTHER"] == "kept"
    assert not [name for name in found if name.upper().startswith("SERVER_")]


def test_settings_can_not_be_changed_and_there_is_a_cpu():
    with pytest.raises(ValueError):
        Settings().http_port = 1
    assert cpu_budget() >= 1
