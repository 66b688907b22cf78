"""The page at `/` in a real browser: it loads by itself alone, its form sends what a client would, and its figures are true."""

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect

from server import page as source
from tests import browser as browsers
from tests.server.models.hostile import CLOSING, MARKUP
from tests.server.test_life import launched

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVED = [
    "iris.skops",
    "houses.skops",
    "reviews.skops",
    "mlp.onnx",
    "strings.onnx",
    "tiny.keras",
    "two-signatures",
    "python/model.py",
]


@pytest.fixture(scope="module")
def browser():
    with browsers.running() as started:
        yield started


@pytest.fixture(scope="module")
def visit(browser):
    """`with visit(url) as page`; afterwards it has asked nobody else, and has nothing to complain about."""
    return lambda url, **options: browsers.visiting(browser, url, **options)


@pytest.fixture(scope="module", params=SERVED)
def example(serve, request):
    with serve(EXAMPLES / request.param) as server:
        yield server


def send(page) -> str:
    """Press the button; the answer's status."""
    page.locator("#status").evaluate_all("gone => gone.forEach((element) => element.remove())")
    page.get_by_role("button", name="Send", exact=True).click()
    return page.locator("#status").inner_text()


def answer(page):
    return json.loads(page.locator("#answer").inner_text())


def snippet(page, title: str) -> str:
    details = page.locator("details", has_text=f"As {title}")
    if details.get_attribute("open") is None:
        page.get_by_text(f"As {title}", exact=True).click()
    shown = page.get_by_label(f"As {title}", exact=True)
    expect(shown).not_to_have_text("")
    return shown.inner_text()


def post(url: str, body: str) -> tuple[int, dict]:
    """What a program gets for the same."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body.encode()), timeout=60) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_form_of_an_example_sends_its_sample_and_shows_what_a_program_is_answered(example, visit):
    with visit(example.http) as page:
        expect(page.get_by_role("heading", name=example.name)).to_contain_text("READY")
        expect(page.get_by_text(example.info["platform"], exact=True)).to_be_visible()
        for spec in [*example.info["inputs"], *example.info["outputs"]]:
            expect(page.get_by_role("cell", name=spec["name"], exact=True).first).to_be_visible()
        assert send(page) == "200"
        _, _, url, _, body = shlex.split(snippet(page, "curl"))
        # the sample of the form is the one that the command line prints
        assert [url, json.loads(body)] == [shlex.split(example.info["curl"])[2], json.loads(shlex.split(example.info["curl"])[4])]
        assert answer(page) == post(url, body)[1]
        assert re.fullmatch(r"[\d.]+ ms", page.locator("#time").inner_text())

        page.get_by_label("KServe and TF Serving V1").check()
        assert send(page) == "200"
        _, _, url, _, body = shlex.split(snippet(page, "curl"))
        assert url == f"{example.http}/v1/models/{example.name}:predict"
        assert answer(page) == post(url, body)[1]


@pytest.mark.parametrize(
    "options", [{"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 700}}], ids=["dark", "a phone"]
)
def test_the_page_fits_and_works_elsewhere_too(iris, visit, options):
    with visit(iris.http, **options) as page:
        assert send(page) == "200"
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(re.search(r"\d+", ground)[0]) < 64) is (options.get("color_scheme") == "dark")


def test_what_the_page_offers_to_paste_answers_the_same(iris, visit):
    with visit(iris.http, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.get_by_label("predict_proba").check()
        page.get_by_label("[1]").fill("-1e-3")
        assert send(page) == "200"
        shown = answer(page)
        assert [output["name"] for output in shown["outputs"]] == ["predict", "predict_proba"]
        programs = [[sys.executable, "-c", snippet(page, "Python")]]
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == programs[0][2]
        if shutil.which("curl"):
            programs.append(["bash", "-c", snippet(page, "curl")])
    for program in programs:
        assert json.loads(subprocess.run(program, capture_output=True, check=True, timeout=60).stdout) == shown


@pytest.mark.parametrize("example", ["reviews.skops"], indirect=True)
def test_probabilities_are_drawn_beside_the_names_of_their_classes(example, visit):
    with visit(example.http) as page:
        page.get_by_label("predict_proba").check()
        assert send(page) == "200"
        shares = answer(page)["outputs"][1]["data"]
        drawn = page.locator("meter").evaluate_all("all => all.map((meter) => [meter.ariaLabel, meter.value])")
        assert [name for name, _ in drawn] == ["negative", "neutral", "positive"]
        assert [share for _, share in drawn] == pytest.approx(shares)


@pytest.mark.parametrize("protocol", ["Open Inference V2", "KServe and TF Serving V1"])
def test_a_bad_value_shows_the_text_of_the_server(iris, visit, protocol):
    with visit(iris.http, refused=True) as page:
        page.get_by_label(protocol).check()
        page.get_by_label("[2]").fill("three")
        assert send(page) == "400"
        _, _, url, _, body = shlex.split(snippet(page, "curl"))
        assert page.locator("#error").inner_text() == post(url, body)[1]["error"]
        assert "expected a number (FP64) at element 2, got the string" in page.locator("#error").inner_text()
        page.get_by_role("button", name="Reset").click()
        expect(page.get_by_label("[2]")).not_to_have_value("three")
        assert send(page) == "200"


def test_rows_are_added_and_removed_and_sent_together(iris, visit):
    with visit(iris.http) as page:
        for _ in range(2):
            page.get_by_role("button", name="Add a row").click()
        page.get_by_role("group", name="Row 2").get_by_label("[0]").fill("6.3")
        page.get_by_role("group", name="Row 1").get_by_role("button", name="Remove").click()
        assert send(page) == "200"
        assert answer(page)["outputs"][0]["shape"] == [2]
        assert json.loads(shlex.split(snippet(page, "curl"))[4])["inputs"][0]["data"][0] == 6.3


def test_a_request_may_be_written_as_json(iris, visit):
    with visit(iris.http, refused=True) as page:
        page.get_by_label("JSON", exact=True).check()
        body = page.get_by_label("The request's body")
        assert json.loads(body.input_value())["inputs"][0]["shape"] == [1, 4]
        body.fill('{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [6.3, 3.3, 6.0, 2.5]}]}')
        assert send(page) == "200"
        assert answer(page)["outputs"][0]["data"] == [2]
        body.fill('{"inputs": ')
        assert send(page) == "400"
        expect(page.locator("#error")).to_contain_text("request body is not valid JSON")


def test_it_works_by_keyboard_alone(iris, visit):
    with visit(iris.http) as page:
        page.get_by_label("[0]").focus()
        page.keyboard.press("Tab")
        expect(page.get_by_label("[1]")).to_be_focused()
        page.keyboard.type("3.5")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_have_text("200")
        # every field and button has a name to be told by
        nameless = "all => all.filter((field) => !field.labels?.length && !field.ariaLabel && !field.textContent.trim()).length"
        assert page.locator("input, select, textarea, button").evaluate_all(nameless) == 0


@pytest.mark.parametrize("example", ["two-signatures"], indirect=True)
def test_another_signature_has_another_form(example, visit):
    with visit(example.http) as page:
        assert send(page) == "200"
        first = [output["name"] for output in answer(page)["outputs"]]
        page.get_by_label("Signature", exact=True).select_option("strings")
        expect(page.get_by_label("[0]")).to_have_count(0)
        for protocol in ("Open Inference V2", "KServe and TF Serving V1"):
            page.get_by_label(protocol).check()
            assert send(page) == "200"
        assert first != list(answer(page)["predictions"][0])


def test_numbers_go_out_digit_by_digit_and_optional_inputs_when_wanted(serve, models, visit):
    with serve(f"{models}/echo.py:Echo") as server, visit(server.http) as page:
        for name, typed in {"int64": "9007199254740993", "fp64": "NaN", "bytes": 'a "b" \\ é', "bool": "true"}.items():
            page.get_by_label(f"send {name} optional").check()
            field = page.get_by_label(re.compile(f"^{name} {name.upper()}"))
            field.select_option(typed) if name == "bool" else field.fill(typed)
        assert send(page) == "200"
        shown = {output["name"]: output["data"] for output in answer(page)["outputs"]}
        assert (shown["int64"], shown["bytes"], shown["bool"]) == ([9007199254740993], ['a "b" \\ é'], [True])
        assert str(shown["fp64"]) == "[nan]"


def test_a_large_tensor_is_a_box_of_json(serve, models, visit):
    with serve(f"{models}/hostile.py:Image") as server, visit(server.http) as page:
        box = page.get_by_label(re.compile("^pixels"))
        pixels = [[[0.5] * 16] * 16, [[0.25] * 16] * 16]
        box.fill(json.dumps(pixels))
        for protocol, found in (
            ("Open Inference V2", lambda shown: shown["outputs"][0]["data"]),
            ("KServe and TF Serving V1", lambda shown: shown["predictions"]),
        ):
            page.get_by_label(protocol).check()
            assert send(page) == "200"
            assert found(answer(page)) == [0.5, 0.25]


def test_a_model_without_a_signature_is_sent_json(serve, models, visit):
    with serve(f"{models}/echo.py:Anything") as server, visit(server.http) as page:
        page.get_by_label("The request's body").fill('{"inputs":[{"name":"a","shape":[1],"datatype":"INT8","data":[7]}]}')
        assert send(page) == "200"
        assert answer(page)["outputs"][0]["data"] == [7]


def test_names_of_models_and_tensors_are_text_and_never_markup(serve, models, visit):
    name = MARKUP.replace("/", "")
    with serve(f"{models}/hostile.py:Names", f"--model_name={name}") as server, visit(server.http, refused=True) as page:
        expect(page.get_by_role("heading", name=name)).to_contain_text("READY")
        expect(page.get_by_role("cell", name=CLOSING, exact=True)).to_be_visible()
        assert send(page) == "200"
        expect(page.locator("#answer")).to_contain_text(json.dumps(f"{CLOSING}{MARKUP}"))
        page.get_by_label("[0]").fill(MARKUP)
        assert send(page) == "400"
        expect(page.locator("#error")).to_contain_text("<img src=x")
        assert page.evaluate("[document.images.length, document.scripts.length, typeof window.broken]") == [0, 1, "undefined"]


def number(page, name: str) -> float:
    return float(page.locator(f"[data-figure={name}]").inner_text().replace("–", "0").removeprefix("< "))


def test_the_figures_follow_the_requests_of_all_clients(serve, models, visit, wire):
    with serve(f"{models}/sums.py:Sums") as server, visit(server.http, refused=True) as page, wire(server.http) as connection:
        expect(page.locator("[data-figure=rate]")).to_have_text("0")
        expect(page.locator("[data-figure=p50]")).to_have_text("–")
        body = {"inputs": [{"name": "x", "shape": [3, 2], "datatype": "FP64", "data": [1, 2, 3, 4, 5, 6]}]}
        for _ in range(200):
            assert connection.ask("POST", "/v2/models/sums/infer", body).status == 200
        expect(page.locator("[data-figure=rows]")).to_have_text("3.00")
        assert number(page, "rate") >= 5
        assert number(page, "p99") >= number(page, "p50") > 0
        expect(page.locator("[data-figure=queue]")).not_to_have_text("–")
        expect(page.get_by_role("img", name=re.compile("^Latency: p50 .*, p99 "))).to_be_visible()
        assert number(page, "failures") == 0
        connection.ask("POST", "/v2/models/sums/infer", b"{}")
        expect(page.locator("[data-figure=failures]")).not_to_have_text("0")


def test_a_model_that_loads_shows_so_and_gets_its_form_by_itself(gate, models, visit):
    environment = {**os.environ, **gate.environment}
    with launched("--model_dir", f"{models}/gated.py:SlowToLoad", env=environment) as server:
        held = gate.entered()
        with visit(server.http) as page:
            expect(page.get_by_role("heading", name="gated")).to_contain_text("LOADING")
            expect(page.get_by_role("status")).to_have_text("not ready")
            held.close()
            expect(page.get_by_role("heading", name="gated")).to_contain_text("READY")
            assert send(page) == "200"


def test_a_page_whose_server_has_gone_says_so_and_what_was_sent_got_no_answer(serve, models, visit):
    with serve(f"{models}/sums.py:Sums") as server, visit(server.http, refused=True) as page:
        assert send(page) == "200"
        expect(page.get_by_role("alert")).to_be_hidden()
        server.stop()
        assert send(page) == "no answer"
        expect(page.get_by_role("alert")).to_contain_text("The server can't be asked what it serves")


@pytest.mark.parametrize("path", ["/serving/a/b", "/serving/a/b/"])
def test_the_page_works_behind_a_path(serve, models, visit, path):
    with serve(f"{models}/sums.py:Sums", "--root_path=/serving/a/b") as server:
        host = server.http.partition("/serving")[0]
        with visit(host + path) as page:
            assert send(page) == "200"
            assert page.locator("#where").inner_text() == "POST /serving/a/b/v2/models/sums/infer"
            for name in ("API docs", "OpenAPI", "Metrics"):
                link = page.get_by_role("link", name=name).evaluate("link => link.href")
                with urllib.request.urlopen(link, timeout=60) as found:
                    assert found.status == 200


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("application/json;q=0.5, TEXT/HTML", True),
        ("text/html;q=0.9", True),
        ("text/html;q=0, */*", False),
        ("*/*", False),
        ("text/*", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_only_who_asks_for_html_by_name_gets_the_page(sums, wire, accept, wanted):
    assert source.is_wanted(accept) is wanted
    with wire(sums.http) as connection:
        found = connection.ask("GET", "/", accept=accept)
        assert found.status == 200
        assert found.headers["content-type"] == ("text/html; charset=utf-8" if wanted else "application/json")
        head = connection.ask("HEAD", "/", accept=accept)
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", found.headers["content-length"])
        if not wanted:
            assert found.json == {"status": "alive"}


def test_the_page_lets_only_its_own_script_and_style_run(sums, wire):
    with wire(sums.http) as connection:
        found = connection.ask("GET", "/", accept="text/html")
    html = found.body.decode()
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", html, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in found.headers["content-security-policy"]
    assert "unsafe" not in found.headers["content-security-policy"]
    assert "default-src 'none'" in found.headers["content-security-policy"]
    # no attribute that runs code or carries style, and nothing from elsewhere but the name of SVG
    assert not re.findall(r"<[^>]*\s(?:on\w+|style|src)=", html.partition("<script")[0])
    assert set(re.findall(r"https?://[^\"'`\s]+", html)) <= {"http://www.w3.org/2000/svg"}


def test_the_page_can_be_switched_off(serve, models, wire):
    with serve(f"{models}/sums.py:Sums", "--enable_docs_url=false") as server, wire(server.http) as connection:
        assert connection.ask("GET", "/", accept="text/html").json == {"status": "alive"}
        for path in ("/page/models", "/page/sample?model=sums"):
            assert connection.ask("GET", path).status == 404


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("", 404, "unknown model ''"),
        ("?model=sum", 404, "did you mean 'sums'?"),
        ("?model=sums&version=3", 404, "has no version '3'"),
        ("?model=sums&signature=tensr", 400, "unknown signature_name 'tensr'"),
    ],
)
def test_a_sample_of_what_is_not_there_is_an_error_like_any_other(sums, wire, query, status, text):
    with wire(sums.http) as connection:
        found = connection.ask("GET", f"/page/sample{query}")
        assert found.status == status
        assert text in found.error
