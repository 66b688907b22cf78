"""What the Containerfiles promise, read from them: no builder runs where the tests do.  The same content is run in pods by
tests/cluster/test_image.py."""

import ast
import json
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FILES = {path.suffix[1:]: path for path in sorted((ROOT / "images").glob("Containerfile.*"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What differs from one to the next, beside the words about it.
OWN = ("# ", "ARG LIBRARIES=", "EXPOSE ", "ENTRYPOINT ", "ENV SERVER_", "ENV TF_")
# Import names that are not their distributions'.
DISTRIBUTIONS = {"yaml": "pyyaml", "dateutil": "python-dateutil"}
each = pytest.mark.parametrize("name", FILES)


def instructions(name):
    """(word, rest) of each, lines that go on joined."""
    text = FILES[name].read_text().replace("\\\n", " ")
    return [tuple(line.partition(" ")[::2]) for line in text.splitlines() if line and not line.startswith("#")]


def last_stage(name):
    found = instructions(name)
    return found[max(at for at, (word, _) in enumerate(found) if word == "FROM") :]


def test_there_is_one_for_each_runtime_and_two_for_the_cluster():
    runtimes = {"sklearn", "onnx", "tensorflow", "python"}
    assert set(FILES) == runtimes | {"storage-initializer", "controller"}


@each
def test_it_is_the_others_but_for_what_is_its_own(name):
    def shared(path):
        lines = [line.replace(f"serveplane/{path.suffix[1:]}", "serveplane/NAME") for line in path.read_text().splitlines()]
        return [line for line in lines if not line.startswith(OWN) and "image.description" not in line]

    assert shared(FILES[name]) == shared(FILES["python"])


@each
def test_it_ends_as_a_user_without_rights_and_without_tools(name):
    found = last_stage(name)
    assert ("USER", "10001:10001") in found
    assert found.index(("USER", "10001:10001")) > max(at for at, (word, _) in enumerate(found) if word in ("RUN", "COPY"))
    (removed,) = [rest for word, rest in found if word == "RUN"]
    assert "pip uninstall" in removed
    assert not any("apt" in rest or "curl" in rest for _, rest in instructions(name))
    assert not {"ADD", "HEALTHCHECK", "VOLUME"} & {word for word, _ in found}


@each
def test_it_starts_a_module_of_ours_whatever_lies_in_the_folder(name):
    ((_, text),) = [one for one in last_stage(name) if one[0] == "ENTRYPOINT"]
    python, *flags, module = json.loads(text)
    assert (python, flags) == ("/opt/serveplane/bin/python", ["-P", "-m"])
    path = ROOT / module.replace(".", "/")
    assert (path / "__main__.py").exists()


@each
def test_it_says_what_it_is(name):
    labels = " ".join(rest for word, rest in last_stage(name) if word == "LABEL")
    for label, value in (("title", f"serveplane/{name}"), ("version", PROJECT["version"]), ("licenses", PROJECT["license"])):
        assert f'org.opencontainers.image.{label}="{value}"' in labels
    assert f"-t serveplane/{name}:{PROJECT['version']}" in FILES[name].read_text()


@each
def test_its_base_can_be_chosen_and_its_versions_are_the_projects(name):
    found = instructions(name)
    assert [rest for word, rest in found if word == "FROM"] == ["${PYTHON} AS build", "${PYTHON}"]
    assert all("latest" not in rest for _, rest in found)
    assert any("--constraints constraints.txt" in rest for word, rest in found if word == "RUN")


@pytest.mark.parametrize("name", ["sklearn", "onnx", "tensorflow", "python"])
def test_a_predictor_listens_for_others_and_runs_no_code_unless_told(name):
    told = " ".join(rest for word, rest in last_stage(name) if word == "ENV").split()
    assert {"SERVER_HOST=0.0.0.0", "SERVER_TRUST_PICKLE=false", "SERVER_MODEL_DIR=/mnt/models"} <= set(told)
    extra = f" --extra {name}" if name in PROJECT["optional-dependencies"] else ""
    assert ("ARG", f'LIBRARIES="--requirements pyproject.toml{extra}"') in instructions(name)


@pytest.mark.parametrize(("name", "start"), [("controller", "deployer.kubernetes"), ("storage-initializer", "server.storage")])
def test_the_libraries_are_those_that_its_modules_import(name, start):
    (listed,) = [rest.partition("=")[2].strip('"').split() for word, rest in instructions(name) if rest.startswith("LIBRARIES=")]
    wanted = {DISTRIBUTIONS.get(one, one) for one in third_party(start)}
    # what another of them brings need not be listed
    brought = {"urllib3", "pydantic-core"}
    assert {canonicalize_name(one) for one in wanted} - brought == {canonicalize_name(Requirement(one).name) for one in listed}


def third_party(start):
    """Top-level names that the module's modules, and ours that these import, import from elsewhere."""
    seen, foreign, todo = set(), set(), [ROOT / start.replace(".", "/") / "__main__.py"]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
            for one in names:
                top = one.partition(".")[0]
                if top in ("server", "deployer"):
                    base = ROOT / one.replace(".", "/")
                    todo += [file for file in (base.with_suffix(".py"), base / "__init__.py") if file.exists()]
                elif top not in sys.stdlib_module_names:
                    foreign.add(top)
    return foreign
