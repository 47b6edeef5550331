"""The page in a real browser: what people see, and that nothing leaves the machine."""

import contextlib
import re
import shutil
import time

import pytest
from web_files import png_header, write_files

pytest.importorskip("gradio", reason='Gradio is not here: pip install -e ".[web]"')
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not here: pip install playwright")

from web_server import served

from mafx.web.guard import COOKIE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
WAIT = 120_000  # milliseconds
PIXEL = """video => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth; canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let low = 255, high = 0;
    for (let i = 0; i < pixels.length; i += 4) { low = Math.min(low, pixels[i]); high = Math.max(high, pixels[i]); }
    return [canvas.width, canvas.height, low, high];
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(tmp_path_factory.mktemp("page")) as (service, server):
        service.warm_up().wait(300)
        yield service, server.url


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser, url, query="", **options):
    """A person's page, and at its end: nobody else was asked, and nothing has failed."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 1000}} | options))
    page = context.new_page()
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
    page.goto(f"{url}{query}")
    page.wait_for_selector("#animate", timeout=WAIT)
    page.wait_for_selector("#verdict [role=status]", timeout=WAIT)
    yield page
    others = [x for x in asked if not x.startswith((url, f"blob:{url}", "data:"))]
    assert asked and not others, others
    assert not failed, failed
    context.close()


def wait_for_progress(page, pattern):
    page.wait_for_function(f"new RegExp({pattern!r}).test(document.querySelector('#progress').innerText)", timeout=WAIT)


def wait_for_seed(page, value):
    playwright.expect(page.get_by_label("Seed")).to_have_value(value)


def fill(page, label, value):
    field = page.get_by_label(label).first
    field.fill(str(value))
    field.press("Tab")


def test_the_puppet_is_animated_and_plays(site, browser):
    with visit(browser, site[1]) as page:
        assert "DensePose video" in page.inner_text("#verdict")
        page.click("#animate")
        wait_for_progress(page, "Done in")
        video = page.wait_for_selector("#result video", state="attached", timeout=WAIT)
        page.wait_for_function("document.querySelector('#result video').readyState >= 2", timeout=WAIT)
        assert abs(video.evaluate("video => video.duration") - 16 / 12) < 0.1
        width, height, low, high = video.evaluate(PIXEL)
        assert (width, height) == (256, 256) and high - low > 50
        assert page.wait_for_selector("#grid video", state="attached").evaluate(PIXEL)[:2] == [768, 256]
        names = page.locator(".file-preview, #files").all_inner_texts()
        assert any("animation" in name and "json" in name for name in names)


def test_progress_and_a_preview_are_seen_and_cancelling_ends_it(site, browser):
    service, url = site
    with visit(browser, url, "?steps=100&seed=3") as page:
        wait_for_seed(page, "3")
        page.click("#animate")
        wait_for_progress(page, "Step [0-9]+ of 100")
        page.wait_for_selector("#progress img", timeout=WAIT)
        first = page.get_attribute("#progress img", "src")
        page.wait_for_function(
            "first => { const x = document.querySelector('#progress img'); return x && x.src != first }",
            arg=first,
            timeout=WAIT,
        )
        wait_for_progress(page, "s left")
        began = time.monotonic()
        page.click("#cancel")
        wait_for_progress(page, "Cancelled")
        while service.turns.running:
            assert time.monotonic() - began < 20
            time.sleep(0.02)


def test_a_bad_file_is_refused_in_words_and_a_good_one_is_judged(site, browser, tmp_path):
    write_files(tmp_path)
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "huge.png").write_bytes(png_header(60_000, 60_000))
    with visit(browser, site[1]) as page:
        page.locator("[aria-label='Clear'], [aria-label='Remove Image']").first.click()
        for name, words in (("text.png", "not used"), ("huge.png", "3600000000 pixels"), ("person.png", "48x32")):
            page.locator("input[type=file]").first.set_input_files(tmp_path / name)
            page.wait_for_function(f"document.querySelector('#verdict').innerText.includes({words!r})", timeout=WAIT)


def test_settings_make_a_link_and_a_link_makes_settings(site, browser):
    with visit(browser, site[1]) as page:
        fill(page, "Seed", 12)
        page.wait_for_function("document.querySelector('#link textarea, #link input').value.includes('seed=12')")
        link = page.locator("#link textarea, #link input").input_value()
    assert link.startswith(site[1])
    with visit(browser, site[1], link.removeprefix(site[1])) as page:
        wait_for_seed(page, "12")
    with visit(browser, site[1], "?frames=1000000") as page:
        assert "This link is not used: Expected 1 to 256 frames" in page.inner_text("#verdict")


def test_two_people_wait_for_each_other_and_see_only_their_own(site, browser):
    _, url = site
    with visit(browser, url, "?steps=100") as anna, visit(browser, url, "?seed=9") as ben:
        anna.click("#animate")
        wait_for_progress(anna, "Step [0-9]+ of 100")
        ben.click("#animate")
        wait_for_progress(ben, "Waiting: 1 before you")
        anna.click("#cancel")
        wait_for_progress(ben, "Done in")
        anna.get_by_label("number input for Steps").fill("1")
        anna.keyboard.press("Tab")
        anna.click("#animate")
        wait_for_progress(anna, "Done in")
        sources = [
            page.wait_for_selector("#result video", state="attached").get_attribute("src") for page in (anna, ben)
        ]
        assert sources[0] != sources[1]
        assert anna.request.get(sources[0]).status == 200
        assert ben.request.get(sources[0]).status == 403
        cookies = [{x["name"]: x for x in page.context.cookies()}[COOKIE] for page in (anna, ben)]
        assert cookies[0]["value"] != cookies[1]["value"] and cookies[0]["httpOnly"]


def test_a_phone_shows_everything_without_scrolling_sideways(site, browser):
    with visit(browser, site[1], viewport={"width": 390, "height": 844}, has_touch=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for name in ("#animate", "#cancel", "#verdict", "#link", "#result"):
            box = page.locator(name).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 390, name
        page.tap("#animate")
        wait_for_progress(page, "Done in")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_keyboard_is_enough(site, browser):
    """Every field has a name, is reached in the order in which it is read, and Animate is pressed by Enter."""
    with visit(browser, site[1]) as page:
        reached = []
        for _ in range(80):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate(
                    """() => {
                    const x = document.activeElement, label = x.labels && x.labels[0];
                    const name = x.id || x.getAttribute("aria-label") || (label && label.innerText) || x.innerText;
                    return name || x.tagName;
                    }"""
                )
            )
            if reached[-1] == "animate":
                break
        names = [re.sub(r"\s+", " ", name) for name in reached]
        assert names[-1] == "animate", names
        order = [next(i for i, name in enumerate(names) if word in name) for word in ("Model", "Steps", "Seed")]
        assert order == sorted(order), names
        assert not {"INPUT", "TEXTAREA", "SELECT"} & set(names), names
        page.keyboard.press("Enter")
        wait_for_progress(page, "Done in")
