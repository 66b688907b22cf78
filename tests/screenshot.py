"""Take the picture of the page that the README shows: `python -m tests.screenshot FILE.png`, from the checkout's folder.

A model is served for it, the requests of a minute make its figures, and a headless Chromium takes it.
"""

import sys
import time
import urllib.request

import orjson
from playwright.sync_api import expect

from tests import browser as browsers
from tests.conftest import EXAMPLES, running

SECONDS = 60.0
SIZE = {"width": 1080, "height": 800}


def main(file: str) -> None:
    with (
        running(EXAMPLES / "reviews.skops") as server,
        browsers.running() as browser,
        browsers.visiting(browser, server.http, viewport=SIZE) as page,
    ):
        page.get_by_label("predict_proba").check()
        page.get_by_role("button", name="Send", exact=True).click()
        expect(page.locator("#status")).to_have_text("200")
        _load(f"{server.http}/v2/models/{server.name}/infer", page)
        page.evaluate("document.activeElement.blur()")
        box = page.get_by_role("region", name="Now").bounding_box()
        assert box
        clip = {"x": 0, "y": 0, "width": SIZE["width"], "height": box["y"] + box["height"] + 16}
        page.screenshot(path=file, full_page=True, clip=clip)


def _load(url: str, page) -> None:
    """Requests of more and fewer rows, so that there is something to see."""
    started = time.monotonic()
    while (at := time.monotonic() - started) < SECONDS:
        rows = 1 + int(at) % 7
        data = ["quick sturdy late acceptable fine"] * rows
        body = orjson.dumps({"inputs": [{"name": "text", "shape": [rows], "datatype": "BYTES", "data": data}]})
        urllib.request.urlopen(urllib.request.Request(url, body), timeout=30).close()
        # the browser's events are waited for here, and so is the time between two requests
        page.wait_for_timeout(20 + 80 * abs(10 - at % 20) / 10)


if __name__ == "__main__":
    main(*sys.argv[1:])
