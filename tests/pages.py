"""A page in headless Chromium, for the tests that click."""

import contextlib
import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")


@contextlib.contextmanager
def opened():
    """An empty page; `page.wrong` gathers errors of the console and requests that fail."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] * (os.geteuid() == 0))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.wrong = []
        page.on("console", lambda message: message.type == "error" and page.wrong.append(message.text))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("requestfailed", lambda request: page.wrong.append(request.url))
        yield page
        browser.close()
