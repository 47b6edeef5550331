"""The page of a run: it shows the run's numbers, asks nobody for anything, and never ends a training."""

import json
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from micro import micro_config

from mafx import media
from mafx.errors import InputError
from mafx.training import loop, page
from mafx.training.checkpoints import SCORE
from mafx.training.config import default_config
from mafx.training.loop import train
from mafx.training.page import MOST_BYTES, MOST_SHOWN, PAGE_FILE, Report, duration, read_report, render, write_page
from mafx.training.watch import METRICS_FILE, Journal, video_path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ALONE = {"meta", "link", "br", "hr", "img", "input", "source"}  # elements without an end


class Checked(HTMLParser):
    """Parses a page, and demands that its elements end in order. Keeps texts, and all addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.addresses = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.addresses += [x for name, x in attrs if name in ("src", "href", "action", "poster", "data")]
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def report(lines=(), **changes):
    fields = page.fields(default_config("appearance"))
    values = Report("run", 10, list(lines), {}, fields, fields, "python train.py", {"jax": "0"}, "today")
    return values._replace(**changes)


def line(step, **values):
    return {"step": step, "loss": 1 / step, "gradient_norm": 2.0, "examples_per_second": 4.0} | values


def points(text):
    """Titles of the first chart, which is that of the loss."""
    return re.findall(r"<title>(step \d[^<]*)</title>", text.split("<figure>")[1])


def test_a_page_has_the_numbers_of_the_run_and_no_address():
    text = render(report([line(step, memory_gib=1.5) for step in (1, 2, 4)]))
    checked = Checked(text)
    assert points(text) == ["step 1, loss 1", "step 2, loss 0.5", "step 4, loss 0.25"]
    assert {"0.25", "10 of 30,000", "2,000", "1.5"} <= set(checked.texts)  # 8 examples at 4 in a second
    assert duration(29_990 * 2) in checked.texts
    assert all(address.startswith("data:") for address in checked.addresses)
    assert not re.search(r"https?:|//|@import|url\(", text.replace("/*", ""))


def test_what_no_chart_lists_has_one_of_its_own():
    assert "Loss scale" in render(report([line(1, loss_scale=65536.0)]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_and_no_values(bad):
    Checked(render(report([line(1, loss=bad, examples_per_second=bad), line(2)])))
    Checked(render(report([line(1, loss=bad)])))
    assert "No finite value yet" in render(report()) and "No clip was animated yet" in render(report())
    Checked(render(report()))


def test_special_characters_are_escaped():
    nasty = "<script>alert('1')</script>&\"\u2028é"
    fields = report().config | {"data.path": nasty, "stage": nasty}
    text = render(report([line(1, **{"<b>": 1.0})], name=nasty, config=fields, command=nasty, versions={nasty: nasty}))
    checked = Checked(text)
    assert text.count("<script>") == 1 and nasty in checked.texts and "<b>" in "".join(checked.texts)


def test_fields_that_differ_from_their_default_come_first():
    text = render(report(config=report().config | {"lr": 0.5, "mesh": {"data": 2, "fsdp": 1}}))
    changed = re.findall(r'<tr class="changed">(.*?)</tr>', text)
    assert len(changed) == 2 and "2 fields differ" in text
    assert any("<b>0.5</b>" in row and "default 1e-05" in row for row in changed)


def test_few_steps_are_shown_with_the_first_and_the_last():
    assert page.spread([]) == [] and page.spread([3]) == [3]
    chosen = page.spread(range(0, 1000, 10))
    assert len(chosen) == MOST_SHOWN and (chosen[0], chosen[-1]) == (0, 990)


def test_a_second_start_draws_nothing_twice(tmp_path):
    lines = [line(step) for step in (1, 2, 3)] + [{"step": 3, SCORE: 20.0, "copying_psnr": 15.0}]
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"step": 4, "lo')
    video = np.zeros((2, 16, 16, 3), np.uint8)
    media.write_video(video_path(tmp_path, 3), video, 12)
    journal = Journal(tmp_path, done=2)
    journal.write(3, {"loss": 0.125})
    config = micro_config("appearance")
    seen = read_report(tmp_path, config, 3)
    assert [x["step"] for x in seen.lines] == [1, 2, 3] and seen.videos == {}
    journal.write(3, {SCORE: 21.0, "copying_psnr": 15.0})
    journal.close()
    write_page(tmp_path, config, 3)
    text = (tmp_path / PAGE_FILE).read_text("utf-8")
    assert points(text) == ["step 1, loss 1", "step 2, loss 0.5", "step 3, loss 0.125"]
    assert "step 3, 21.00 dB" in text and text.count("<video") == 1 and "+6.00" in text


def test_the_page_stays_small(tmp_path, rng):
    """Noise compresses worst: of it, a video of 1024 rows is made smaller, and curves are thinned."""
    lines = [line(step) for step in range(1, 20_001)]
    lines += [{"step": 1000 * i, SCORE: 20.0, "copying_psnr": 15.0} for i in range(1, 21)]
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(x) + "\n" for x in lines))
    media.write_video(video_path(tmp_path, 1000), rng.integers(0, 256, (3, 1024, 768, 3), np.uint8), 12)
    assert video_path(tmp_path, 1000).stat().st_size > MOST_BYTES
    for i in range(2, 21):
        shutil.copy(video_path(tmp_path, 1000), video_path(tmp_path, 1000 * i))
    began = page.small_video.cache_info().misses
    for _ in range(2):
        write_page(tmp_path, micro_config("appearance"), 20_000)
    assert page.small_video.cache_info().misses - began == MOST_SHOWN, "small videos are made once"
    assert (tmp_path / PAGE_FILE).stat().st_size < MOST_SHOWN * MOST_BYTES * 1.4 + 200_000


def test_a_page_that_cannot_be_written_ends_no_training(one_device, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(page, "write_whole", full)
    with pytest.raises(InputError, match=r"page.html was not written: No space left"):
        write_page(tmp_path, micro_config("appearance"), 1)
    train(micro_config("appearance", steps=1), tmp_path, one_device)
    assert any("No space left on device; the run goes on without" in x for x in caplog.messages)
    assert not (tmp_path / PAGE_FILE).exists() and (tmp_path / "checkpoints" / "1").is_dir()


def test_process_0_alone_writes(monkeypatch):
    wrote = []
    monkeypatch.setattr(loop, "write_page", lambda *_: wrote.append(1))
    monkeypatch.setattr(loop.jax, "process_index", lambda: 1)
    loop.Run.write_page(object.__new__(loop.Run))
    assert not wrote


@pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")
def test_a_browser_opens_it_from_a_file(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    lines = [line(step) for step in range(1, 40)] + [{"step": 39, SCORE: 20.0, "copying_psnr": 15.0}]
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(x) + "\n" for x in lines))
    media.write_video(video_path(tmp_path, 39), np.zeros((2, 16, 64, 3), np.uint8), 12)
    write_page(tmp_path, micro_config("appearance", **{"data.path": "/a/" + "long" * 60}), 39)
    address = (tmp_path / PAGE_FILE).as_uri()
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 390, "height": 800})
        complaints, requests = [], []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(address)
        tab.wait_for_function("document.querySelector('video').readyState >= 2")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        tab.locator("rect").nth(4).hover()
        assert tab.locator("output").first.text_content() == "step 5, loss 0.2"
        tab.locator("summary").click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert not complaints and [x for x in requests if not x.startswith("data:")] == [address]
