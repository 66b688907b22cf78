"""What docs/versions.md tells to paste works as it stands there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/versions.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
CURLS = [text for text in BLOCKS if text.startswith("curl")]
ANSWERS = [
    '"model_version":"2"',
    '"model_version":"1"',
    '"predictions":[2]',
    re.search(r"```\n(\{.*?)\n```", PAGE)[1],
    '{"name":"iris","version":"1","state":"READY","reason":""}',
    "",
]


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory):
    """A server as the page starts it, of the folders that the page makes."""
    here = tmp_path_factory.mktemp("page")
    (here / "examples").symlink_to(ROOT / "examples")
    making, starting = BLOCKS[:2]
    subprocess.run(["bash", "-ec", making], cwd=here, check=True)
    command, verb, folder, *flags = shlex.split(starting)
    assert (command, verb) == ("./serve", "run")
    with serve(here / folder, *flags, "--enable-model-control") as started:
        yield started


@pytest.mark.parametrize(("command", "answer"), list(zip(CURLS, ANSWERS, strict=True)))
def test_a_request_of_the_page_is_answered_as_it_says(server, command, answer):
    here = command.replace("http://127.0.0.1:8080", server.http)
    done = subprocess.run(["bash", "-c", here], capture_output=True, text=True, check=True)
    assert answer in done.stdout
    assert '"error"' in answer or '"error"' not in done.stdout
