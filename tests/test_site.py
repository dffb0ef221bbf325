"""The pages, as a reader opens them: from a file, under a sub-path, on a phone, with a keyboard."""

import functools
import http.server
import re
import threading
from urllib.parse import unquote, urldefrag

import pytest
from pages import needs_chromium, opened

from xmem_utils import paths
from xmem_utils.site.build import build


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    build(folder / "xmem", folder / "source")
    return folder / "xmem"


@pytest.fixture
def page():
    with opened() as page:
        yield page


def links(pages):
    """(page, target) of every link, picture, script and style inside the site."""
    for file in (file for file in pages.rglob("*.html") if "_static" not in file.parts):
        text = re.sub(r"<script>.*?</script>", "", file.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r'(?:href|src)="([^"]+)"', text):
            if not re.match(r"https?:|mailto:|data:|javascript:|#", target):
                yield file, unquote(urldefrag(target)[0].partition("?")[0])


def test_every_link_leads_somewhere(pages):
    missing = {f"{file.relative_to(pages)}: {t}" for file, t in links(pages) if not (file.parent / t).exists()}
    assert not missing
    assert sum(1 for _ in links(pages)) > 200


def test_there_is_a_page_a_notebook_and_a_download_a_table(pages):
    names = {file.stem for file in (pages / "notebooks").glob("*.html")}
    assert names == {path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")}
    downloads = {file.name for file in (pages / "_downloads").rglob("*.csv")}
    assert downloads >= {file.name for file in (paths.REPO / "figures").glob("*.csv")}


def test_every_picture_says_what_it_shows(pages):
    drawn = [f"notebooks/{path.stem}" for path in paths.NOTEBOOKS.glob("*.ipynb")]
    for name in ("index", "people", "docs/results", *drawn):
        for picture in re.findall(r"<img [^>]*>", (pages / f"{name}.html").read_text("utf-8")):
            assert re.search(r'alt="[^"]{3,}"', picture), picture


@needs_chromium
def test_the_people_are_filtered_by_keyboard(pages, page):
    page.goto((pages / "people.html").as_uri())
    assert page.inner_text("#count") == "100 of 100 people"
    page.focus("select[name=skin]")
    page.keyboard.press("ArrowDown")
    shown = page.locator("#people figure:visible")
    assert 0 < shown.count() < 100 and page.inner_text("#count") == f"{shown.count()} of 100 people"
    first = shown.first.locator("b").inner_text()
    page.focus("input[name=name]")
    page.keyboard.type(first.upper())
    assert page.inner_text("#count") == "1 of 100 people"
    assert not page.wrong


@needs_chromium
def test_pages_work_on_a_phone_and_under_a_sub_path(pages, page):
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *given: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=pages.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/xmem"
        outside = []
        page.on("request", lambda request: outside.append(request.url))
        page.set_viewport_size({"width": 390, "height": 844})
        for name in ("index", "docs/results", "people", "notebooks/08_claims"):
            page.goto(f"{here}/{name}.html", wait_until="networkidle")  # the icon, too
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, f"{name} is wider than a phone"
        server.shutdown()
    assert not [url for url in outside if not url.startswith((here, "data:"))]
    assert not page.wrong
