"""What the README tells a newcomer to paste works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README, re.S)
CURLS = [text for language, text in BLOCKS if language == "sh" and text.startswith("curl")]
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
ANSWERS = ['"predict_proba"', '"predictions":[2]', '"results":[[["0",', '"predictions":[']


@pytest.fixture(scope="module")
def addresses(serve):
    """From the README's ports to those of servers of this test, by model."""
    with serve(ROOT / "examples/iris.skops") as iris, serve(ROOT / "examples/houses.skops") as houses:
        yield {"iris": iris, "houses": houses}


def here(text: str, addresses) -> str:
    server = addresses["houses" if "houses" in text else "iris"]
    return text.replace("http://127.0.0.1:8080", server.http).replace("127.0.0.1:8081", server.grpc)


@pytest.mark.parametrize(("command", "answer"), list(zip(CURLS, ANSWERS, strict=True)), ids=["V2", "V1", "classes", "a table"])
def test_a_request_of_the_readme_is_answered(addresses, command, answer):
    done = subprocess.run(["bash", "-c", here(command, addresses)], capture_output=True, text=True, check=True)
    assert answer in done.stdout


@pytest.mark.parametrize("program", PROGRAMS, ids=["TensorFlow Serving", "Triton"])
def test_a_program_of_the_readme_prints_a_prediction(addresses, program):
    done = subprocess.run([sys.executable, "-P", "-c", here(program, addresses)], capture_output=True, text=True, check=True)
    assert done.stdout == "[2]\n"


def test_the_mistake_of_the_readme_is_answered_as_it_says(addresses):
    body = '{"inputs":[{"name":"x","shape":[4],"datatype":"FP64","data":[1,2,3,4]}]}'
    command = ["curl", "-s", f"{addresses['iris'].http}/v2/models/iris/infer", "-d", body]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout in README


@pytest.mark.parametrize(
    "page", [README, *(p.read_text() for p in sorted((ROOT / "docs").glob("*.md")))], ids=lambda p: p.split("\n")[0][2:]
)
def test_links_of_the_pages_lead_somewhere(page):
    base = ROOT if page == README else ROOT / "docs"
    for link in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (base / link).exists(), link
