"""Fixtures for what brings models here: a server, a clean environment, and a disk that is small."""

import os
import resource
import subprocess

import pytest

from tests import buckets
from tests.server.storage.origin import Origin


@pytest.fixture
def origin():
    server = Origin()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """No proxies but those of a test, and no cache of the user's."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in [name for name in os.environ if name.startswith(buckets.VARIABLES)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def s3(s3_server, monkeypatch):
    """An S3 server that the environment names, with a key."""
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def small_disk(tmp_path):
    """A folder that holds less than 2 MiB: a file system of its own where we may make one, else by a limit for files."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True, check=False)
    if mounted.returncode == 0:
        yield folder
        subprocess.run(["umount", "-l", folder], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, before[1]))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
