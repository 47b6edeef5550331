"""A browser for tests, whose camera is a file."""

import contextlib
import dataclasses
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
PATIENCE = 30  # clicks on a tab


@dataclasses.dataclass
class Seen:
    """What a page did.

    Attributes:
      requests: Addresses that it asked for.
      problems: Errors of its scripts.
    """

    requests: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def hosts(self):
        return {url.split("/")[2] for url in self.requests if url.startswith(("http", "ws"))}


@contextlib.contextmanager
def browser_with_camera(camera=None):
    """An empty page, and what it does; skips where there is no browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not here")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    film = [] if camera is None else [f"--use-file-for-fake-video-capture={camera}"]
    seen = Seen()
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *film])
        page = browser.new_page()
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("pageerror", lambda error: seen.problems.append(str(error)))
        page.on("console", lambda line: seen.problems.append(line.text) if line.type == "error" else None)
        yield page, seen
        browser.close()


def open_tab(page, name):
    """Open a tab. A click may come before Gradio listens, so that it clicks until the tab is open."""
    from playwright.sync_api import expect  # noqa: PLC0415 (may be absent)

    tab = page.get_by_role("tab", name=name)
    for _ in range(PATIENCE):
        tab.click()
        with contextlib.suppress(AssertionError):
            expect(tab).to_have_attribute("aria-selected", "true", timeout=2000)
            return
    raise AssertionError(f"the tab {name!r} does not open")
