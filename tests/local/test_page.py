"""The page of a service behind the platform's proxy, which takes the path in front of it away."""

import pytest
from playwright.sync_api import expect

from tests import browser as browsers


@pytest.fixture(scope="module")
def address(platform, models):
    return platform.object("deploy", models[2], "--name", "paged")["status"]["url"]


@pytest.mark.parametrize("end", ["", "/"])
def test_the_page_of_a_service_sends_requests_to_it_through_the_proxy(address, end):
    with browsers.running() as browser, browsers.visiting(browser, address + end) as page:
        expect(page.get_by_role("heading", name="paged")).to_contain_text("READY")
        expect(page.locator("#where")).to_have_text("POST /serving/default/paged/v2/models/paged/infer")
        page.get_by_role("button", name="Send", exact=True).click()
        expect(page.locator("#status")).to_have_text("200")
        expect(page.locator("#answer")).to_contain_text('"data": [2.0')
        expect(page.locator("[data-figure=rows]")).to_have_text("1.00")
