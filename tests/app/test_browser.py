"""The page in a real browser: headless Chromium, with its network cut off but for this machine."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.app.test_server import huge, png

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the browser is driven by playwright: pip install playwright"
)
expect = sync_api.expect
expect.set_options(timeout=60_000)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path: apt-get install chromium"),
    pytest.mark.xdist_group("browser"),
]
PATIENCE = 60_000
"""Milliseconds; a busy machine is no fault of the page."""

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A person's visit: a page with its own cookies, which notes what it fetched and what went wrong."""

    def __init__(self, browser: Any, address: str, width: int = 1100):
        self.address = address
        self.context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
        self.page = self.context.new_page()
        self.fetched: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._note)
        self.page.set_default_timeout(PATIENCE)
        self.page.goto(address)
        self.page.wait_for_selector("#samples button")

    def _note(self, message: Any) -> None:
        refused = "Failed to load resource" in message.text  # an answer 400, which the page shows
        if message.type == "error" and not refused:
            self.faults.append(message.text)

    def give(self, content: bytes, name: str = "photo.png") -> None:
        self.page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})

    def results(self, count: int) -> Any:
        """Wait until so many models have answered, and return what they said."""
        found = self.page.locator(".result")
        expect(found).to_have_count(count)
        expect(self.page.locator("#status")).to_have_text("done")
        return found

    def changed(self, before: list[str]) -> None:
        """Wait until other maps are shown."""
        expect(self.page.locator(".result .map img").first).not_to_have_attribute("src", before[0])
        expect(self.page.locator("#status")).to_have_text("done")

    def maps(self) -> list[str]:
        return [self.page.locator(".result .map img").nth(i).get_attribute("src") for i in range(2)]

    def close(self) -> None:
        outside = [url for url in self.fetched if not url.startswith((f"{self.address}/", "data:", "blob:"))]
        assert not outside, outside
        assert not self.faults, self.faults
        self.context.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    here = Visit(browser, address)
    yield here
    here.close()


def test_upload_predict_click_and_compare(visit: Visit, tmp_path: Path) -> None:
    visit.give(png((60, 40)))
    cards = visit.results(2)
    assert cards.nth(0).locator("h3").inner_text() == "small"
    assert cards.nth(1).locator("h3").inner_text() == "converted"
    shares = cards.nth(0).locator(".bar > span:last-child").all_inner_texts()
    assert len(shares) == 3
    assert sum(float(share.removesuffix(" %")) for share in shares) == pytest.approx(100, abs=0.3)
    before = visit.maps()
    box = visit.page.locator("#picture").bounding_box()
    visit.page.mouse.click(box["x"] + 0.31 * box["width"], box["y"] + 0.81 * box["height"])
    assert visit.page.locator("#place").inner_text() == "Now column 18, row 32."
    visit.changed(before)
    assert all(now != then for now, then in zip(visit.maps(), before, strict=True))

    last = cards.nth(1).locator(".layers button").nth(2)
    assert last.get_attribute("aria-pressed") == "true"
    cards.nth(1).locator(".layers button").first.click()
    assert "layer 1 of 3: blocks.0.attn, focused" in cards.nth(1).inner_text()
    with visit.page.expect_download() as download:
        cards.nth(1).get_by_text("download").click()
    download.value.save_as(tmp_path / "map.png")
    assert download.value.suggested_filename == "blocks.0.attn_mixing.png"
    with Image.open(tmp_path / "map.png") as picture:
        assert min(picture.size) >= 200

    visit.page.select_option("#model-1", label="none")
    visit.results(1)


def test_bad_files_are_said_and_the_page_goes_on(visit: Visit) -> None:
    message = visit.page.locator("#message")
    for content, said in ((b"text", "this is no image that can be read"), (huge(), "7000 x 7000 pixels")):
        visit.give(content)
        expect(message).to_contain_text(said)
        expect(message).to_be_visible()
    visit.give(png())
    visit.results(2)
    expect(message).to_be_hidden()
    visit.page.fill("#path", "nowhere/at/all")
    visit.page.click("#open button")
    visit.page.wait_for_selector("#message:has-text('there is no run folder or checkpoint file at')")
    visit.page.get_by_role("button", name="portrait").click()
    visit.page.wait_for_selector("#message", state="hidden")
    visit.results(2)


def test_two_people_do_not_see_each_others_images(browser: Any, address: str) -> None:
    here, there = Visit(browser, address), Visit(browser, address)
    here.give(png((60, 40), (250, 0, 0)))
    there.give(png((30, 50), (0, 0, 250)))
    for visit in (here, there):
        visit.results(2)
    mine, yours = (visit.page.locator("#picture").get_attribute("src") for visit in (here, there))
    assert mine != yours
    assert not any(str(yours) in url for url in here.fetched)
    assert not any(str(mine) in url for url in there.fetched)
    sizes = [visit.page.evaluate("[document.getElementById('picture').naturalWidth]")[0] for visit in (here, there)]
    assert sizes == [60, 30]
    for visit in (here, there):
        visit.close()


def test_the_keyboard_is_enough(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the first sample
    visit.results(2)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "target"
    place = page.locator("#place").inner_text()
    before = visit.maps()
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#place").inner_text() != place
    visit.changed(before)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "one sees where one is"
    named = page.evaluate(
        "[...document.querySelectorAll('select, input, button')].every("
        "e => e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label'))"
    )
    assert named


def test_a_narrow_screen_needs_no_sideways_scrolling(browser: Any, address: str) -> None:
    visit = Visit(browser, address, width=320)
    visit.give(png((1013, 37)))
    visit.results(2)
    for _ in range(2):
        assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        visit.page.get_by_role("button", name="digit").click()
        visit.results(2)
    visit.close()


def test_cost_is_shown_for_the_size_that_was_chosen(visit: Visit) -> None:
    visit.page.locator("#size").fill("256")
    visit.page.click("#measure")
    visit.page.wait_for_selector("#cost .bar")
    text = visit.page.locator("#cost").inner_text()
    assert "256 tokens" in text
    assert len(re.findall(r"[\d.]+ ms", text)) == 3


def test_a_pasted_and_a_dropped_image_are_taken(visit: Visit) -> None:
    for event, holder in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        visit.page.evaluate(
            """([event, holder, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "photo.png", { type: "image/png" }));
                const kind = event === "paste" ? ClipboardEvent : DragEvent;
                document.dispatchEvent(new kind(event, { [holder]: data, bubbles: true, cancelable: true }));
            }""",
            [event, holder, list(png((70 if event == "paste" else 50, 20)))],
        )
        width = 70 if event == "paste" else 50
        expect(visit.page.locator("#picture")).to_have_js_property("naturalWidth", width)
    visit.results(2)


def test_a_page_without_a_server_says_so(browser: Any, address: str) -> None:
    visit = Visit(browser, address)
    visit.context.route("**/api/image", lambda route: route.abort())
    visit.give(png())
    visit.page.wait_for_selector("#message:has-text('the server does not answer')")
    visit.context.close()
