"""A real browser for the tests of pages: Chromium without a window, driven by Playwright, and what went wrong in it."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.left_out import leave_out

# Debian's name, Debian's with a window, Fedora's, Google's; Playwright's own download needs more than package registries.
PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
LEFT_OUT = (
    "there is no Chromium to look at pages with. Run ./scripts/browser (Debian and Ubuntu), or name a Chromium in $CHROMIUM, "
    "and run: ./scripts/test tests/server/test_page.py"
)
# Nothing of its own goes out, and it may run as root.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def running() -> Iterator[Browser]:
    """A browser, or the test is left out and says how to have it run."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        leave_out(LEFT_OUT)
    # a machine may be busy
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*FLAGS])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visiting(browser: Browser, url: str, refused: bool = False, **options: Any) -> Iterator[Page]:
    """A page that is open at `url`.

    Afterwards: it has asked nobody but that server, and its console has no complaint, but for requests without success where
    `refused` says that there will be some.
    """
    origin = re.match(r"https?://[^/]+", url)
    assert origin
    context = browser.new_context(**options)
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: asked.append(request.url))
    page.set_default_timeout(30_000)
    try:
        page.goto(url)
        yield page
    finally:
        context.close()
    assert [one for one in asked if not one.startswith((f"{origin[0]}/", "data:"))] == []
    expected = "Failed to load resource" if refused else "\0"
    assert [one for one in complaints if expected not in one] == []
