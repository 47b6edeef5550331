"""The server as clients see it: Gradio's own client, and hostile requests."""

import json
import threading
import time
from pathlib import Path

import pytest
from web_files import png_header, write_files

pytest.importorskip("gradio", reason='Gradio is not here: pip install -e ".[web]"')

import gradio_client
import httpx
from gradio_client import handle_file
from web_server import served

from mafx import media
from mafx.web.guard import COOKIE, LOCAL_HOSTS

LONG = 300  # seconds
FILE = "/gradio_api/file="


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with served(tmp_path_factory.mktemp("page")) as (service, server):
        yield service, server.url.rstrip("/")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"))


def visitor(url, **options):
    """A browser's requests: with a cookie, as the page gives it."""
    http = httpx.Client(base_url=url, timeout=60, **options)
    http.get("/")
    return http


def upload(http, name, content):
    answer = http.post("/gradio_api/upload", files={"files": (name, content)})
    answer.raise_for_status()
    return answer.json()[0]


def join(http, *values, session="abc", fn="animate"):
    """Ask for an animation as the page does."""
    config = http.get("/config").json()
    number = next(x["id"] for x in config["dependencies"] if x["api_name"] == fn)
    return http.post("/gradio_api/queue/join", json={"data": list(values), "fn_index": number, "session_hash": session})


SETTINGS = ["bundled", "32x32", 2, 1, 1.0, "ddim", 0]


# -- Gradio's client


def client(url, tmp_path, **options):
    return gradio_client.Client(url, verbose=False, download_files=str(tmp_path), **options)


def test_gradio_s_client_animates_by_a_stable_name(page, files, tmp_path):
    _, url = page
    video, grid, others, said = client(url, tmp_path).predict(
        reference=handle_file(str(files / "person.png")),
        driving=handle_file(str(files / "motion.mp4")),
        frames=3,
        steps=2,
        seed=5,
        api_name="/animate",
    )
    frames, fps = media.read_video(path_of(video))
    assert frames.shape == (3, 256, 256, 3) and fps == 15
    assert media.read_video(path_of(grid))[0].shape == (3, 256, 768, 3)
    record = json.loads(next(Path(path).read_text() for path in map(path_of, others) if path.endswith(".json")))
    assert record["settings"]["steps"] == 2 and record["settings"]["seed"] == 5
    assert "Done" in said


def path_of(value):
    """Where the client has put a file; videos are named among their subtitles."""
    return value["video"] if isinstance(value, dict) else value


def test_clients_are_offered_the_animation_and_its_inside_alone(page, tmp_path):
    info = client(page[1], tmp_path).view_api(return_format="dict")
    offered = ["/animate", "/look_inside", "/attention", "/inside_pictures"]
    assert list(info["named_endpoints"]) == offered and not info["unnamed_endpoints"]
    names = [x["parameter_name"] for x in info["named_endpoints"]["/animate"]["parameters"]]
    assert names == ["reference", "driving", "model", "size", "frames", "steps", "guidance", "sampler", "seed"]


def test_a_client_is_told_what_does_not_fit(page, files, tmp_path):
    asked = client(page[1], tmp_path)
    (files / "person.json").write_text("{}")
    for options, message in (
        ({"steps": 1000}, "at most 100 steps"),
        ({"size": "33x33"}, "divisible by"),
        ({"model": "../../etc"}, "one of the models"),
        ({"reference": handle_file(str(files / "motion.mp4"))}, "picture"),
        ({"driving": handle_file(str(files / "person.json"))}, "video"),
    ):
        with pytest.raises(Exception, match=message):
            asked.predict(api_name="/animate", **options)


def test_a_client_s_cancelling_ends_its_job(page, tmp_path):
    service, url = page
    job = client(url, tmp_path).submit(steps=100, frames=3, api_name="/animate")
    wait_for(lambda: service.turns.running is not None)
    job.cancel()
    wait_for(lambda: service.turns.running is None)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def test_jobs_of_two_clients_wait_for_each_other_and_both_are_done(page, tmp_path):
    clients = [client(page[1], tmp_path) for _ in range(2)]
    jobs = [c.submit(frames=2, steps=2, seed=i, api_name="/animate") for i, c in enumerate(clients)]
    results = [job.result(timeout=LONG) for job in jobs]
    assert all("Done" in result[-1] for result in results)
    assert results[0][0] != results[1][0]


def test_a_password_is_demanded_and_is_enough(tmp_path):
    with served(tmp_path / "page", password="drawn puppet") as (_, server):
        assert httpx.get(server.url).status_code == 401
        for wrong in ("", "Drawn puppet", "drawn puppet "):
            assert httpx.get(server.url, auth=("me", wrong)).status_code == 401
        assert httpx.get(f"{server.url}config", headers={"authorization": "Basic %%%"}).status_code == 401
        assert httpx.get(server.url, auth=("anybody", "drawn puppet")).status_code == 200
        headers = {"Authorization": httpx.BasicAuth("me", "drawn puppet")._auth_header}
        info = client(server.url, tmp_path, headers=headers).view_api(return_format="dict")
        assert "/animate" in info["named_endpoints"]


# -- Files


def test_a_file_of_one_person_is_not_visible_to_another(page, files):
    anna, ben, nobody = visitor(page[1]), visitor(page[1]), httpx.Client(base_url=page[1])
    content = (files / "person.png").read_bytes() + b"anna's"  # whoever brings the same bytes has them already
    path = upload(anna, "secret.png", content)
    assert anna.get(f"{FILE}{path}").content == content
    for http in (ben, nobody):
        for form in (path, path.replace("/", "%2F"), path.replace("/", "//", 1), f"{path}?x=1"):
            assert http.get(f"{FILE}{form}").status_code == 403, form
        named = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "secret.png"}
        assert join(http, named, None, *SETTINGS).status_code == 403
        assert join(http, None, {"video": named}, *SETTINGS).status_code == 403
        assert http.post("/gradio_api/run/predict", json={"data": [named], "fn_index": 3}).status_code == 403


def test_an_animation_is_not_visible_to_another(page):
    service, url = page
    anna, ben = visitor(url), visitor(url)
    result = service.animate(anna.cookies[COOKIE], choices(), None, None).wait(LONG)
    for path in result.files:
        assert anna.get(f"{FILE}{path}").status_code == 200
        assert ben.get(f"{FILE}{path}").status_code == 403


def choices():
    from mafx.web.links import Choices  # noqa: PLC0415

    return Choices(frames=2, steps=2)


def test_nothing_outside_of_the_folder_is_served(page, tmp_path):
    service, url = page
    http = visitor(url)
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    own = upload(http, "own.txt", b"own")
    inside = service.folder.public
    paths = [
        secret, "/etc/passwd", "//etc/passwd", "etc/passwd", "../../../../etc/passwd", f"{inside}/../../{secret.name}",
        f"{inside}/..%2f..%2f..%2fetc/passwd", f"{inside}/%2e%2e/%2e%2e/secret.txt", f"{own}/../../../secret.txt",
        f"{inside}/../../../../../../../../etc/passwd", "file:///etc/passwd", "~/.bashrc", "C:\\windows\\win.ini",
        "%2fetc%2fpasswd", "/proc/self/environ", "setup.cfg", ".", "", "%00", f"{inside}%00.png", str(inside),
        f"http://127.0.0.1:{httpx.URL(url).port}/config", "https://example.com/", "HTTPS://example.com/",
    ]  # fmt: skip
    for path in paths:
        for route in (FILE, "/file=", "/gradio_api/file/", "/file/", "/static/", "/assets/", "/svelte/"):
            answer = http.get(f"{route}{path}")
            assert answer.status_code in (307, 400, 403, 404), (route, path, answer.status_code)
            assert b"root:" not in answer.content and answer.content != b"secret"
    named = [{"path": str(path), "meta": {"_type": "gradio.FileData"}} for path in paths if "%" not in str(path)]
    for value in named:
        assert join(http, value, None, *SETTINGS).status_code == 403, value


def test_a_link_in_a_name_leads_nowhere(page):
    _, url = page
    http = visitor(url)
    for name in ("../../escape.png", "/etc/escape.png", "..\\escape.png", "a/b/c.png", "." * 50, "x" * 300 + ".png"):
        answer = http.post("/gradio_api/upload", files={"files": (name, b"content")})
        if answer.status_code == 200:
            (path,) = answer.json()
            assert page[0].folder.is_open(path, http.cookies[COOKIE])


# -- Requests


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=https://example.com/x", "/gradio_api/vibe-code", "/gradio_api/run-history/buckets", "/docs",
        "/gradio_api/runs", "/monitoring", "/monitoring/summary", "/gradio_api/deep_link", "/gradio_api/dev/reload",
        "/gradio_api/custom_component/a/client/b/c", "/gradio_api/mcp", "/gradio_api/token", "/login", "/openapi.json",
        "/gradio_api/process_recording",
    ],
)  # fmt: skip
def test_what_the_page_does_not_need_is_not_there(page, path):
    http = visitor(page[1])
    assert http.get(path).status_code == 404 and http.post(path, json={}).status_code == 404


def test_every_answer_forbids_other_hosts(page):
    http = visitor(page[1])
    for path in ("/", "/config", "/theme.css", "/absent", f"{FILE}/etc/passwd"):
        policy = http.get(path).headers["content-security-policy"]
        assert "default-src 'self'" in policy and "http:" not in policy and "*" not in policy
    page_text = http.get("/").text
    assert "fonts.googleapis" not in page_text and '<script src="http' not in page_text


def test_other_names_of_this_machine_and_other_sites_are_refused(page):
    _, url = page
    port = httpx.URL(url).port
    assert httpx.get(url, headers={"host": f"evil.example:{port}"}).status_code == 421
    assert httpx.get(url, headers={"host": f"localhost:{port}"}).status_code == 200
    for origin in ("https://evil.example", "null", f"http://localhost:{port + 1}"):
        answer = httpx.post(f"{url}/gradio_api/queue/join", json={}, headers={"origin": origin})
        assert answer.status_code == 403
    assert "127.0.0.1" in LOCAL_HOSTS


def test_bodies_that_are_too_long_or_no_json_are_refused(page):
    http = visitor(page[1])
    for body in (b"{", b"\xff", b"[" * 100_000, b'"' + b"x" * 2**20 + b'"'):
        assert http.post("/gradio_api/queue/join", content=body).status_code == 403
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert http.request(method, "/").status_code == 405


def test_a_huge_picture_is_refused_and_the_page_goes_on(page):
    http = visitor(page[1])
    path = upload(http, "huge.png", png_header(60_000, 60_000))
    said = events(http, {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "huge.png"})
    assert "3600000000 pixels" in said
    assert http.get("/").status_code == 200


def events(http, *values):
    """Everything that is said of an animation of a reference."""
    assert join(http, *values, None, *SETTINGS, session="said").status_code == 200
    with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": "said"}, timeout=LONG) as answer:
        lines = []
        for line in answer.iter_lines():
            lines.append(line)
            if "process_completed" in line:
                return "\n".join(lines)
    return "\n".join(lines)


def test_too_long_an_upload_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MAFX_MAX_UPLOAD_BYTES", "1000")
    with served(tmp_path / "page") as (_, server):
        answer = visitor(server.url).post("/gradio_api/upload", files={"files": ("a.png", b"x" * 5000)})
        assert answer.status_code == 413


def test_uploads_go_after_an_hour(page, files):
    service, url = page
    http = visitor(url)
    path = upload(http, "old.png", (files / "person.png").read_bytes() + b" ")
    assert http.get(f"{FILE}{path}").status_code == 200
    service.folder.sweep(time.time() + 3601)
    assert http.get(f"{FILE}{path}").status_code == 403
    assert threading.active_count() < 200
