"""The mirror as browsers see it: its requests, and a real browser whose camera is a file."""

import base64
import io
import time

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image
from web_files import png_header

pytest.importorskip("gradio", reason='Gradio is not here: pip install -e ".[web]"')

import gradio as gr
import httpx
from starlette.applications import Starlette
from starlette.testclient import TestClient
from web_browser import browser_with_camera, open_tab
from web_server import served

import mafx
from mafx import media
from mafx.densepose.finders import FinderOptions
from mafx.diffusion.schedule import Schedule
from mafx.puppets import STANDING, Identity, draw_puppet
from mafx.web import mirror_tab
from mafx.web.guard import COOKIE
from mafx.web.mirror import Seconds, Shown
from mafx.web.mirror_tab import read_picture, write_picture

CLIP = SHARED / "data" / "clips" / "teaser" / "images"
CAMERA = 240, 320
SECONDS = 120  # in which a mirror shows somebody, on a machine that does other things
LEAST_FPS = 1.0  # likewise
SAMPLED = 12  # seconds, in which a picture is taken of both every 150 ms or more
LATE = 1.0  # seconds, of the five of a step there and back: not so late that right looks like left


@pytest.fixture(scope="module")
def finder(pose_files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    (folder / "pose_detection.tflite").write_bytes(pose_files.detection)
    (folder / "pose_landmark_full.tflite").write_bytes(pose_files.landmarks)
    return FinderOptions(weights=folder)


@pytest.fixture(scope="module")
def page(finder, tmp_path_factory):
    with served(tmp_path_factory.mktemp("page")) as (service, server):
        service.finder = finder
        httpx.post(f"{server.url}mirror/open", json={}, timeout=300).raise_for_status()  # compiles
        yield server.url


# -- Requests


class Glass:
    """In place of a mirror: it shows the frame, or as slowly as it is told."""

    picture = np.zeros((8, 8, 3), np.uint8)
    seconds = 0.0

    def __init__(self, *_):
        pass

    def open_on_puppet(self, seed):
        return self

    open_on_person = open_on_puppet

    def show(self, frame):
        time.sleep(self.seconds)
        return Shown(frame, True, Seconds(0.01, 0.02, 0.03))


@pytest.fixture
def http(monkeypatch, finder, tmp_path):
    """Requests of one person to a page without Gradio."""
    from mafx.sources import find_sources  # noqa: PLC0415 (slow)
    from mafx.web.folders import TemporaryFolder  # noqa: PLC0415
    from mafx.web.service import Service  # noqa: PLC0415

    monkeypatch.setattr(mirror_tab, "Mirror", Glass)
    service = Service(find_sources(None), TemporaryFolder(tmp_path), finder=finder)
    with gr.Blocks():
        routes = mirror_tab.add_tab(service)
    yield TestClient(Starlette(routes=routes), cookies={COOKIE: "ann"})
    service.close()


def url_of(content, kind="jpeg"):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


FRAME = write_picture(np.full((24, 32, 3), 90, np.uint8))


def test_a_frame_goes_in_and_a_picture_comes_out(http):
    opened = http.post("/mirror/open", json={"seed": 3}).json()
    np.testing.assert_allclose(read_picture(opened["picture"]), Glass.picture)
    shown = http.post("/mirror/show", json={"mirror": opened["mirror"], "picture": FRAME}).json()
    np.testing.assert_allclose(read_picture(shown["picture"]), 90, atol=2)
    assert shown["found"] and shown["milliseconds"] == {"pose": 10.0, "labels": 20.0, "networks": 30.0}
    assert http.post("/mirror/end", json={"mirror": opened["mirror"]}).status_code == 200
    gone = http.post("/mirror/show", json={"mirror": opened["mirror"], "picture": FRAME})
    assert gone.status_code == 410 and gone.json() == {"error": "the mirror has ended; start it again"}


@pytest.mark.parametrize(
    ("door", "content", "complaint"),
    [
        ("open", {"model": "other"}, "expected one of the models bundled, found 'other'"),
        ("open", {"seed": -1}, "seed: expected a whole number (0 to "),
        ("open", {"steps": 10**6}, "steps: expected a whole number (1 to "),
        ("open", {"picture": "data:image/png;base64,AAAA"}, "is not a picture that can be read"),
        ("open", {"picture": url_of(png_header(5000, 5000), "png")}, "sides of at most 2048 pixels, found 5000"),
        ("open", [1], "expected a JSON object"),
        ("show", {"mirror": 7}, "mirror: expected text"),
        ("end", {}, "lacks the setting 'mirror'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(http, door, content, complaint):
    answer = http.post(f"/mirror/{door}", json=content)
    assert answer.status_code == 400 and complaint in answer.json()["error"]


def test_what_is_no_json_and_what_is_no_picture_is_refused(http):
    assert "expected JSON" in http.post("/mirror/open", content=b"{").json()["error"]
    name = http.post("/mirror/open", json={}).json()["mirror"]
    for picture in ("", "nonsense", "data:image/jpeg;base64,!!!!", url_of(b"text"), url_of(png_header(9000, 9), "png")):
        answer = http.post("/mirror/show", json={"mirror": name, "picture": picture})
        assert answer.status_code == 400, picture
    assert http.post("/mirror/show", json={"mirror": name, "picture": FRAME}).status_code == 200


@pytest.mark.parametrize(
    ("prediction", "guidance", "steps", "expected"),
    [("sample", 1.0, 25, 1), ("sample", 2.0, 25, 4), ("epsilon", 1.0, 25, 4), ("v", 7.5, 3, 3)],
)
def test_a_mirror_takes_few_steps(prediction, guidance, steps, expected):
    schedule = Schedule(prediction=prediction, zero_terminal_snr=prediction != "epsilon")
    assert mirror_tab.few_steps(schedule, mafx.Settings(guidance_scale=guidance, steps=steps)) == expected


def test_without_landmark_networks_it_is_said_what_to_do(http, monkeypatch):
    def none(options):
        raise mirror_tab.InputError("expected landmark networks, found none; start again with --fetch_networks")

    monkeypatch.setattr(mirror_tab, "landmark_networks", none)
    answer = http.post("/mirror/open", json={})
    assert answer.status_code == 400 and "start again with --fetch_networks" in answer.json()["error"]


def test_pictures_go_through_data_urls(rng):
    picture = np.kron(rng.integers(0, 256, (4, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    assert np.abs(read_picture(write_picture(picture)).astype(int) - picture).mean() < 4


# -- A browser


def write_camera(path, frames):
    """What a camera sees, as a file that browsers take for one: 30 frames a second, again and again."""
    with path.open("wb") as file:
        for frame in frames:
            content = io.BytesIO()
            Image.fromarray(frame).save(content, "JPEG", quality=90)
            file.write(content.getvalue())
    return path


def walking_puppet():
    """A drawn person who steps from side to side for five seconds."""
    identity = Identity.from_seed(1)
    ways = 0.4 * np.sin(np.linspace(0, 2 * np.pi, 150, endpoint=False))
    return [draw_puppet(identity, STANDING | {"spread": 0.2, "sway": way}, CAMERA)[0] for way in ways]


SAMPLE = """async ([selector, seconds]) => {
  const canvas = document.createElement("canvas"), samples = [], end = performance.now() + 1000 * seconds;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  [canvas.width, canvas.height] = [32, 32];
  while (performance.now() < end) {
    const pair = ["video", "img"].map((name) => {
      context.drawImage(document.querySelector(`${selector} ${name}`), 0, 0, 32, 32);
      return [...context.getImageData(0, 0, 32, 32).data];
    });
    samples.push(pair);
    await new Promise((resolve) => setTimeout(resolve, 150));
  }
  return samples;
}"""


def part(page, name):
    return page.locator(f"#mirror [data-part={name}]")


def start(page, url):
    page.goto(url)
    open_tab(page, "Mirror")
    page.get_by_role("button", name="Start the camera").click()


def where(pictures):
    """How far to the right of each picture somebody is, from what changes against the mean of all."""
    away = np.abs(pictures - np.median(pictures, axis=0)).sum((1, 3))
    return (away * np.arange(away.shape[1])).sum(1) / away.sum(1)


def test_the_puppet_does_what_the_camera_sees(page, tmp_path):
    camera = write_camera(tmp_path / "camera.mjpeg", walking_puppet())
    with browser_with_camera(camera) as (browser, seen):
        start(browser, page)
        part(browser, "numbers").filter(has_text="frames a second").wait_for(timeout=1000 * SECONDS)
        samples = np.array(browser.evaluate(SAMPLE, ["#mirror", SAMPLED]), float).reshape(-1, 2, 32, 32, 4)[..., :3]
        driver, shown = where(samples[:, 0]), where(samples[:, 1])
        count = len(driver)
        lags = range(1 + int(LATE * count / SAMPLED))
        behind = [np.corrcoef(driver[: count - lag], shown[lag:])[0, 1] for lag in lags]
        assert min(behind) < -0.5  # the camera's picture is turned when it is shown
        fps, latency = (float(part(browser, "numbers").inner_text().split()[i]) for i in (0, 4))
        assert fps > LEAST_FPS and latency < 1000 * 2 / LEAST_FPS
        part(browser, "status").filter(has_text="Move!").wait_for()

        browser.get_by_role("button", name="Stop the camera").click()
        part(browser, "status").filter(has_text="The camera is off.").wait_for()
        time.sleep(1)
        count, picture = len(seen.requests), part(browser, "shown").get_attribute("src")
        time.sleep(1.5)
        assert not [request for request in seen.requests[count:] if "mirror" in request]
        assert part(browser, "shown").get_attribute("src") == picture
        assert not browser.evaluate("document.querySelector('#mirror video').srcObject")
        assert seen.problems == [] and seen.hosts == {page.split("/")[2]}


def test_another_puppet_may_be_chosen_while_the_camera_is_on(page, tmp_path):
    camera = write_camera(tmp_path / "camera.mjpeg", walking_puppet()[:1])
    with browser_with_camera(camera) as (browser, seen):
        start(browser, page)
        shown = []
        for seed in (0, 3):
            part(browser, "seed").fill(str(seed))
            part(browser, "seed").dispatch_event("change")
            part(browser, "status").filter(has_text="Opening").wait_for()
            part(browser, "status").filter(has_text="Move!").wait_for(timeout=1000 * SECONDS)
            shown.append(read_picture(part(browser, "shown").get_attribute("src")))
        assert np.abs(shown[0].astype(int) - shown[1]).mean() > 10
        assert sum("mirror/open" in request for request in seen.requests) >= 2 and seen.problems == []


def test_a_filmed_person_is_seen(page, tmp_path):
    if not CLIP.is_dir():
        pytest.skip("the filmed clip (../shared/data/clips/teaser) is not here")
    frames = [media.read_image(path) for path in media.picture_files(CLIP)]
    frames = [np.asarray(Image.fromarray(frame).resize((480, 480))) for frame in frames]
    with browser_with_camera(write_camera(tmp_path / "camera.mjpeg", frames)) as (browser, seen):
        start(browser, page)
        part(browser, "status").filter(has_text="Move!").wait_for(timeout=1000 * SECONDS)
        shown = set()
        for _ in range(20):
            shown.add(part(browser, "shown").get_attribute("src"))
            time.sleep(0.2)
        assert len(shown) > 3 and seen.problems == []


def test_an_empty_room_is_said(page, tmp_path):
    wall = [np.full((*CAMERA, 3), 120, np.uint8)]
    with browser_with_camera(write_camera(tmp_path / "camera.mjpeg", wall)) as (browser, seen):
        start(browser, page)
        part(browser, "status").filter(has_text="Nobody is seen").wait_for(timeout=1000 * SECONDS)
        assert seen.problems == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("NotAllowedError", "The camera may not be used: allow it beside the page's address, and start again."),
        ("NotFoundError", "There is no camera."),
        ("NotReadableError", "The camera is in use elsewhere, or broken."),
    ],
)
def test_a_camera_that_is_not_there_is_said(page, name, sentence):
    with browser_with_camera() as (browser, seen):
        refuse = f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('no', '{name}'); }}"
        browser.add_init_script(refuse)
        start(browser, page)
        part(browser, "status").filter(has_text=sentence).wait_for()
        assert browser.get_by_role("button", name="Start the camera").is_visible()
        assert not [request for request in seen.requests if "mirror/open" in request]
