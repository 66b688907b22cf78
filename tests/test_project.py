"""What holds for the project as a whole: its versions agree, its pins are pins, its files could lie on any machine."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server.life import VERSION

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip() and not line.startswith("#")]
TRACKED = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


def requirements():
    """What an environment is asked to hold; what builds the project lives in one of its own."""
    lists = [PROJECT["project"]["dependencies"]]
    lists += [*PROJECT["project"]["optional-dependencies"].values(), *PROJECT["dependency-groups"].values()]
    return sorted({r for group in lists for r in group if isinstance(r, str)})


def name_of(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def test_the_version_is_the_same_wherever_it_is_said():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert PROJECT["project"]["version"] == VERSION == newest


@pytest.mark.parametrize("requirement", [r for r in requirements() if name_of(r) != PROJECT["project"]["name"]])
def test_every_requirement_is_pinned_and_the_pin_is_allowed(requirement):
    pins = [Requirement(line) for line in CONSTRAINTS if name_of(line) == name_of(requirement)]
    assert len(pins) == 1
    (specifier,) = pins[0].specifier
    assert specifier.operator == "=="
    assert specifier.version in Requirement(requirement).specifier


@pytest.mark.parametrize("line", CONSTRAINTS)
def test_a_constraint_is_a_name_and_a_version_and_no_address(line):
    assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!+_-]*( ; .+)?", line)


# In parts, so that this file is not one of those that it looks for.
HOSTS = [*(".".join(parts) for parts in (["pypi", "org"], ["files", "pythonhosted"], ["registry", "npmjs"], ["ghcr", "io"]))]
PLACES = ["/".join(("", *parts, "")) for parts in (["work"], ["root"], ["home", "runner"], ["tmp", "trial"])]
FORBIDDEN = re.compile("|".join(re.escape(word) for word in (*HOSTS, *PLACES)).encode())


@pytest.mark.parametrize("file", [f for f in TRACKED if (ROOT / f).is_file()])
def test_no_file_names_a_path_of_one_machine_or_the_host_of_a_registry(file):
    found = FORBIDDEN.search((ROOT / file).read_bytes())
    assert found is None, found


@pytest.mark.parametrize("script", [f for f in TRACKED if f.startswith(("scripts/", ".ci/")) or f == "serve"])
def test_scripts_can_be_run(script):
    assert os.access(ROOT / script, os.X_OK)
    assert (ROOT / script).read_text().startswith("#!/usr/bin/env ")


PAGES = sorted(f for f in TRACKED if f == "README.md" or (f.startswith("docs/") and f.endswith(".md")))
COMMANDS = sorted({c for page in PAGES for c in re.findall(r"\./(?:serve|scripts/\w+)(?: [a-z]+)?", (ROOT / page).read_text())})


def test_the_pages_name_commands():
    assert {"./serve run", "./serve check", "./scripts/test"} <= {c.rstrip() for c in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_the_pages_name_exists(command):
    program, _, verb = command.partition(" ")
    assert os.access(ROOT / program, os.X_OK)
    if program == "./serve" and verb:
        assert subprocess.run([ROOT / program, verb, "--help"], capture_output=True, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    "path", re.findall(r"\./(?:serve|scripts/\w+)[^\n`]*? (examples/\S+?)`?$", (ROOT / "README.md").read_text(), re.M)
)
def test_an_example_that_the_readme_serves_exists(path):
    assert (ROOT / path.rstrip("`")).exists()
