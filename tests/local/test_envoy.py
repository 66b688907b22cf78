"""What is rendered for Envoy: files that a person reviews, weights, and that Envoy itself finds nothing wrong with any of it.

`UPDATE_GOLDEN=1 ./scripts/test tests/local/test_envoy.py` writes `golden/NAME.yaml` anew. Read the difference.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer.local.envoy import Backend, Endpoint, EnvoyOptions, HeaderRoute, Mirror, ServiceRoutes, bootstrap, render
from deployer.local.proxy import refusals, steps

GOLDEN = Path(__file__).parent / "golden"
OPTIONS = EnvoyOptions(Path("/state/envoy"), 8085, Path("/state/envoy.sock"), Path("/state/logs/access.log"))
A, B, C = Endpoint(20001, 20002), Endpoint(20003, 20004), Endpoint(20005, 20006)
ONE, TWO, THREE = (f"iris-predictor-0000{i}" for i in (1, 2, 3))


def iris(*backends: Backend, **more) -> ServiceRoutes:
    return ServiceRoutes(
        **({"namespace": "default", "name": "iris", "port": 20000, "timeout": 60.0, "backends": backends} | more)
    )


CASES = {
    "nothing": [],
    "one": [iris(Backend(ONE, 100, (A, B)))],
    "no-predictor": [iris(Backend(ONE, 100, ()))],
    "no-backend": [iris()],
    "canary": [
        iris(
            Backend(ONE, 80, (A,)),
            Backend(TWO, 20, (B,)),
            header_routes=(HeaderRoute("x-user", "tester", TWO),),
            mirror=Mirror(TWO, 10),
        ),
    ],
    "two-services": [
        iris(Backend(ONE, 100, (A,)), timeout=0.0),
        ServiceRoutes("team-a", "iris", 20010, 0.5, (Backend(ONE, 100, (B,)),)),
    ],
    # both would be a-b-c.localhost
    "one-host": [
        ServiceRoutes("c", "a-b", 20011, 60.0, (Backend("a-b-predictor-00001", 100, (A,)),)),
        ServiceRoutes("b-c", "a", 20012, 60.0, (Backend("a-predictor-00001", 100, (B,)),)),
    ],
    "unknown-backends": [
        iris(Backend(ONE, 100, (A,)), header_routes=(HeaderRoute("x", "y", "gone"),), mirror=Mirror("gone", 50)),
    ],
}
# what a person reads: of each kind of file one
REVIEWED = [
    ("nothing", ["bootstrap.json", "cds.json", "lds.json", "routes.json"]),
    ("canary", ["cds.json", "routes.json"]),
]


@pytest.mark.parametrize(("case", "files"), REVIEWED)
def test_the_files_are_those_that_were_reviewed(case, files):
    rendered = {"bootstrap.json": bootstrap(OPTIONS), **render(OPTIONS, CASES[case])}
    shown = yaml.dump({name: rendered[name] for name in files}, Dumper=Plain, sort_keys=False, width=130)
    file = GOLDEN / f"{case}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(shown)
    assert shown == file.read_text()


class Plain(yaml.SafeDumper):
    """Without anchors: what stands in two places is written in both."""

    def ignore_aliases(self, data) -> bool:
        return True


def whole(options: EnvoyOptions, services) -> dict:
    """One static configuration of all files: the form in which Envoy checks every word, and each route's clusters too."""
    files = render(options, services)
    document = bootstrap(options)
    del document["dynamic_resources"]
    static = document["static_resources"]
    static["clusters"] = list(map(_untyped, files["cds.json"]["resources"]))
    (routes,) = files["routes.json"]["resources"]
    for listener in files["lds.json"]["resources"]:
        connection = listener["filter_chains"][0]["filters"][0]["typed_config"]
        assert connection.pop("rds")["route_config_name"] == routes["name"]
        connection["route_config"] = {**_untyped(routes), "validate_clusters": True}
        static["listeners"].append(_untyped(listener))
    return document


def _untyped(document: dict) -> dict:
    return {name: value for name, value in document.items() if name != "@type"}


def envoy(*arguments: str) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).parent / "envoy"), "--disable-hot-restart", "--log-level", "error", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("case", CASES)
def test_envoy_accepts_what_is_rendered(case, tmp_path):
    options = EnvoyOptions(tmp_path, 8085, tmp_path / "envoy.sock", tmp_path / "access.log")
    file = tmp_path / "whole.json"
    file.write_text(json.dumps(whole(options, CASES[case])))
    checked = envoy("--mode", "validate", "--config-path", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_envoy_would_have_said_so(tmp_path):
    options = EnvoyOptions(tmp_path, 8085, tmp_path / "envoy.sock", tmp_path / "access.log")
    document = whole(options, CASES["one"])
    document["static_resources"]["clusters"].pop()
    file = tmp_path / "whole.json"
    file.write_text(json.dumps(document))
    checked = envoy("--mode", "validate", "--config-path", str(file))
    assert checked.returncode != 0
    assert f"unknown weighted cluster 'default/{ONE}/grpc'" in checked.stdout + checked.stderr


def last_route(service: ServiceRoutes) -> dict:
    """Where a request goes that says nothing special."""
    (resource,) = render(OPTIONS, [service])["routes.json"]["resources"]
    return resource["virtual_hosts"][0]["routes"][-1]


@pytest.mark.parametrize(
    ("why", "backends", "expected"),
    [
        ("one gets all", [(ONE, 100, (A,))], {ONE: 100}),
        ("as the spec says", [(ONE, 80, (A,)), (TWO, 20, (B,))], {ONE: 80, TWO: 20}),
        ("no endpoint: its share goes to the other", [(ONE, 80, (A,)), (TWO, 20, ())], {ONE: 80}),
        ("also when it is the stable one", [(ONE, 80, ()), (TWO, 20, (B,))], {TWO: 20}),
        ("to the others in their proportion", [(ONE, 60, (A,)), (TWO, 30, ()), (THREE, 10, (C,))], {ONE: 60, THREE: 10}),
        ("weight 0 is none", [(ONE, 100, (A,)), (TWO, 0, (B,))], {ONE: 100}),
        ("weight 0 is none when the other is away, too", [(ONE, 100, ()), (TWO, 0, (B,))], 503),
        ("nobody is there", [(ONE, 80, ()), (TWO, 20, ())], 503),
        ("there is nothing yet", [], 503),
    ],
)
def test_weights_go_to_those_who_can_answer(why, backends, expected):
    route = last_route(iris(*(Backend(*backend) for backend in backends)))
    if expected == 503:
        assert route["direct_response"]["status"] == 503
    else:
        clusters = route["route"]["weighted_clusters"]["clusters"]
        assert {c["name"].split("/")[1]: c["weight"] for c in clusters} == expected


def test_of_two_services_with_one_host_the_first_has_it():
    (resource,) = render(OPTIONS, CASES["one-host"])["routes.json"]["resources"]
    hosts = {host["name"]: host["domains"] for host in resource["virtual_hosts"]}
    assert hosts == {"c/a-b": ["a-b-c.localhost"], "shared": ["*"]}


def test_a_socket_s_path_that_is_too_long_is_refused_with_what_to_do():
    options = EnvoyOptions(Path("/s"), 1, Path("/" + "x" * 107), Path("/l"))
    with pytest.raises(
        ValueError, match=r"a socket's path has 107 characters at most, this one 108; choose a shorter state directory"
    ):
        bootstrap(options)


# from one set of files to the next


def names(document: dict) -> set[str]:
    return {resource["name"] for resource in document["resources"]}


def used_clusters(document) -> set[str]:
    if isinstance(document, dict):
        found = set().union(*(used_clusters(value) for key, value in document.items() if key != "weighted_clusters"))
        mirrors = {m["cluster"] for m in document.get("request_mirror_policies", ())}
        return found | mirrors | {c["name"] for c in document.get("weighted_clusters", {}).get("clusters", ())}
    return set().union(*map(used_clusters, document)) if isinstance(document, list) else set()


ENDPOINTS = st.lists(st.sampled_from([A, B, C]), unique=True, max_size=2).map(tuple)


def services_called(name: str) -> st.SearchStrategy[ServiceRoutes]:
    revisions = [f"{name}-predictor-0000{i}" for i in (1, 2, 3)]
    backends = st.lists(
        st.builds(Backend, st.sampled_from(revisions), st.integers(0, 100), ENDPOINTS), unique_by=lambda b: b.name
    )
    mirrors = st.sampled_from([None, Mirror(revisions[0], 10), Mirror(revisions[1], 20)])
    fixed = {"namespace": st.just("default"), "name": st.just(name), "port": st.just(20000), "timeout": st.just(60.0)}
    return st.builds(ServiceRoutes, **fixed, backends=backends.map(tuple), mirror=mirrors)


SERVICES = st.lists(st.sampled_from(["iris", "houses"]).flatmap(services_called), unique_by=lambda s: s.name)


@settings(max_examples=200)
@given(SERVICES, SERVICES)
def test_no_step_from_any_files_to_any_others_leads_to_what_is_not_there(before, wanted):
    files, goal = render(OPTIONS, before), render(OPTIONS, wanted)
    for name, document in steps(files, goal):
        files[name] = document
        assert used_clusters(files["routes.json"]) <= names(files["cds.json"])
    assert files == goal
    assert steps(files, goal) == []


@pytest.mark.parametrize(
    ("why", "before", "wanted", "expected"),
    [
        ("nothing changes", CASES["one"], CASES["one"], []),
        ("a first service", CASES["nothing"], CASES["one"], ["cds.json", "routes.json", "lds.json"]),
        ("a service goes", CASES["one"], CASES["nothing"], ["routes.json", "lds.json", "cds.json"]),
        ("a candidate comes", CASES["one"], CASES["canary"], ["cds.json", "routes.json"]),
        ("an endpoint goes", CASES["one"], [iris(Backend(ONE, 100, (A,)))], ["cds.json"]),
        ("the last endpoint goes", CASES["one"], CASES["no-predictor"], ["routes.json", "cds.json"]),
        ("a weight changes", [iris(Backend(ONE, 1, (A,)))], [iris(Backend(ONE, 2, (A,)))], ["routes.json"]),
        (
            "one goes while another comes",
            CASES["one"],
            CASES["two-services"][1:],
            ["cds.json", "routes.json", "lds.json", "cds.json"],
        ),
    ],
)
def test_clusters_come_first_and_go_last(why, before, wanted, expected):
    assert [name for name, _ in steps(render(OPTIONS, before), render(OPTIONS, wanted))] == expected


def test_all_files_are_written_where_there_are_none():
    assert [name for name, _ in steps({}, render(OPTIONS, CASES["one"]))] == ["cds.json", "routes.json", "lds.json"]


@pytest.mark.parametrize(
    ("why", "log", "expected"),
    [
        ("nothing was refused", "[2026-11-24 10:00:00.000][1][warning][main] hello\n", []),
        (
            "one line",
            "[2026-11-24 10:00:00.000][1][warning][config] [f.cc:81] Filesystem config update rejected: malformed IP address: x\n"
            "[2026-11-24 10:00:00.001][1][warning][main] hello\n",
            ["malformed IP address: x"],
        ),
        (
            "a few lines",
            "[2026-11-24 10:00:00.000][1][warning][config] [f.cc:81] Filesystem config update rejected: Invalid duration\nseconds: -1\n\n",
            ["Invalid duration seconds: -1"],
        ),
        (
            "with all that was refused before the reason",
            "[2026-11-24 10:00:00.000][1][warning][config] [f.cc:81] Filesystem config update rejected: name: main\na: 1\nb: 2\nc: 3\n: Match: is required\n",
            ["Match: is required"],
        ),
    ],
)
def test_envoy_s_reason_is_found_in_its_log(why, log, expected):
    assert list(refusals(log)) == expected
