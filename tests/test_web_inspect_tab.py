"""The tab that looks inside: what it computes, and that a click shows it."""

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
from web_browser import browser_with_camera, open_tab

from mafx import media
from mafx.densepose import PALETTE
from mafx.errors import InputError
from mafx.inspect.recording import Recording
from mafx.sources import Source
from mafx.web.folders import TemporaryFolder
from mafx.web.links import Choices

pytest.importorskip("gradio", reason="the page needs gradio: pip install mafx[web]")

from mafx.web.inspect_tab import Session, Sessions, add_tab, all_sheets, look, make_session
from mafx.web.page import build
from mafx.web.server import Server
from mafx.web.service import Service
from mafx.web.turns import CancelledError, Job

LAYERS = ["mid_block/attentions_0", "up_blocks_1/attentions_0", "up_blocks_1/attentions_1"]
CHOICES = Choices(frames=3, steps=2)


def unused_job(person="me"):
    return Job(person, lambda job: None)


@pytest.fixture(scope="module")
def service(micro, tmp_path_factory):
    settings = {"window": 4, "overlap": 1, "guidance_scale": 1.0}
    source = Source(
        name="micro",
        config=micro.config,
        schedule=micro.schedule,
        size=(16, 16),
        settings=settings,
        data=None,
        load=lambda dtype: micro,
    )
    service = Service({"micro": source}, TemporaryFolder(tmp_path_factory.mktemp("web")))
    yield service
    service.close()


@pytest.fixture(scope="module")
def session(service):
    return make_session(service, "me", CHOICES, None, None, unused_job())


def test_a_look_shows_where_most_of_the_attention_is(session):
    frame, heat, said = look(session, 1, 0, (5, 9), LAYERS[2], unused_job())
    assert Path(frame).parent == Path(heat).parent == session.folder and frame != heat
    picture = media.read_image(heat)
    assert picture.shape == media.read_image(frame).shape == (384, 384, 3)
    top, bottom, left, right, share = map(
        int, re.search(r"rows (\d+) to (\d+), columns (\d+) to (\d+): (\d+)%", said).groups()
    )
    yellow = picture @ np.array([1, 1, -2])  # where the attention is, whatever of the reference shines through
    most = yellow[top * 24 : (bottom + 1) * 24, left * 24 : (right + 1) * 24].mean()
    assert most == pytest.approx(yellow.reshape(8, 48, 8, 48).mean((1, 3)).max(), rel=0.05)
    weights = session.attended(1, 0, (5, 9))[LAYERS[2]].reference[0]
    assert share == round(100 * weights.max()) and f"**{weights.sum():.0%}**" in said


def test_another_layer_of_the_same_place_is_not_computed_again(session, monkeypatch):
    look(session, 2, 1, (3, 3), LAYERS[0], unused_job())
    monkeypatch.setattr(Recording, "observe", lambda *_: pytest.fail("it was computed again"))
    look(session, 2, 1, (3, 3), LAYERS[1], unused_job())
    with pytest.raises(pytest.fail.Exception):
        look(session, 2, 0, (3, 3), LAYERS[1], unused_job())


def test_all_pictures_are_one(session):
    picture = media.read_image(all_sheets(session, 1, (5, 9), unused_job()))
    assert picture.shape[0] > 1000 and (picture == PALETTE[0]).all(-1).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 0, (5, 9), LAYERS[0]), "a frame from 0 to 2, found 3"),
        ((0, 2, (5, 9), LAYERS[0]), "a step from 0 to 1, found 2"),
        ((0, 0, (16, 0), LAYERS[0]), "rows 0 to 15"),
        ((0, 0, (-1, 0), LAYERS[0]), "rows 0 to 15"),
        ((0, 0, (5, 9), "../secret"), "expected one of the layers"),
    ],
)
def test_what_is_not_there_is_refused(session, arguments, message):
    with pytest.raises(InputError, match=message):
        look(session, *arguments, unused_job())


def test_whoever_leaves_ends_the_animation_within_a_step(service):
    steps = []
    job = unused_job()
    report = job.report

    def leave_after_a_step(update):
        if update.part == "steps":
            steps.append(update.done)
            job.cancel()
        report(update)

    job.report = leave_after_a_step
    with pytest.raises(CancelledError):
        make_session(service, "me", CHOICES, None, None, job)
    assert steps == [1]


def test_people_see_their_own_animation_until_others_have_come(tmp_path):
    folders = [tmp_path / str(i) for i in range(3)]
    for folder in folders:
        folder.mkdir()
    sessions, kept = Sessions(most=2), [Session(None, folder) for folder in folders]
    sessions.keep("a", kept[0])
    sessions.keep("b", kept[1])
    assert sessions.get("a") is kept[0]
    sessions.keep("c", kept[2])
    assert sessions.get("a") is kept[0] and sessions.get("c") is kept[2]
    folders[2].rmdir()  # as the sweep does after an hour
    for person in ("b", "c", "", "d"):
        with pytest.raises(InputError, match="animate first"):
            sessions.get(person)


def test_the_page_has_the_tab(service):
    page, routes = build(service, (add_tab,))
    assert not routes
    assert {x.api_name for x in page.fns.values()} >= {"look_inside", "attention", "inside_pictures"}


@pytest.fixture(scope="module")
def page(service):
    """The page in a browser, as narrow as a phone."""
    with browser_with_camera() as (page, _), contextlib.closing(Server(service)) as server:
        page.set_viewport_size({"width": 390, "height": 900})
        page.goto(server.url)
        open_tab(page, "Look inside")
        yield page


def test_a_click_and_the_keyboard_choose_a_place(page):
    page.get_by_label("number input for Steps").last.fill("2")
    page.locator("#inspect").click()
    said = page.locator("#inspect-said")
    page.wait_for_selector("#inspect-heat img", timeout=120_000)
    assert "of its attention goes to the reference" in said.inner_text()
    picture = page.locator("#inspect-frame img")
    side = picture.bounding_box()["width"]
    picture.click(position={"x": side * 0.3, "y": side * 0.8})
    page.wait_for_function(
        "document.querySelector('#inspect-said').innerText.startsWith('Place 12,4 ')", timeout=60_000
    )
    assert page.locator("#inspect-row input").input_value() == "12"
    page.locator("#inspect-column input").fill("7")
    page.keyboard.press("Tab")
    page.wait_for_function(
        "document.querySelector('#inspect-said').innerText.startsWith('Place 12,7 ')", timeout=60_000
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
