"""The command that fetches weights, against a server on loopback. Nothing here reaches the internet."""

import dataclasses
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from hub import Hub
from rcnn_fixtures import published_tensors, write_pickle

import mafx
from mafx.errors import InputError
from mafx.evaluation import features
from mafx.evaluation.features import NETWORKS, NetworkSpec
from mafx.pretrained import download as command
from mafx.pretrained import transfers
from mafx.pretrained.configs import REQUIRED
from mafx.pretrained.download import download, find_sources, parse
from mafx.pretrained.formats import open_tensors
from mafx.pretrained.layout import PARTS
from mafx.pretrained.origins import ANIMATION, BY_HAND, METRICS, ORIGINS, Origin
from mafx.pretrained.torch_files import write_torch_archive

ROOT = Path(__file__).parent.parent
SMALL = ROOT / "tests" / "published" / "weights"
UNET = "unet/diffusion_pytorch_model.safetensors"
UNET_PLACE = f"stable-diffusion-v1-5/{UNET}"
SETTINGS = "inference_config.json"

# What is published, without the vocabulary, which the small text tower lacks, and with the settings that it needs.
SMALL_ORIGINS = [x for x in ORIGINS if x.group == ANIMATION and "tokenizer" not in x.place]
SMALL_ORIGINS.append(Origin(ANIMATION, SETTINGS, "zcxu-eric/MagicAnimate", SETTINGS, "none"))


def small_content(origin, folder):
    """The bytes that stand for a published file."""
    path = SMALL / origin.place
    if path.suffix == ".ckpt":
        tensors = open_tensors(path.with_suffix(".fp16.safetensors"))
        write_torch_archive(folder / path.name, ((name, tensors.read(name)) for name in tensors.shapes))
        return (folder / path.name).read_bytes()
    return (path if path.exists() else path.with_suffix(".fp16.safetensors")).read_bytes()


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    folder, contents = tmp_path_factory.mktemp("repositories"), {}
    for origin in SMALL_ORIGINS:
        contents.setdefault(origin.repository, {})[origin.name] = small_content(origin, folder)
    return contents


@pytest.fixture
def hub(opening_hub, monkeypatch):
    """For tests of what comes before files are opened, which takes seconds."""
    monkeypatch.setattr(command, "_open_all", lambda *_: None)
    return opening_hub


@pytest.fixture
def opening_hub(repositories, monkeypatch):
    monkeypatch.setattr(transfers, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(socket, "getaddrinfo", only_loopback)
    for name in ("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as hub:
        hub.repositories = repositories
        yield hub
        hub.shutdown()


find_address = socket.getaddrinfo


def only_loopback(host, *args, **options):
    """No test may reach another machine."""
    assert host in ("127.0.0.1", "localhost", b"127.0.0.1", b"localhost"), host
    return find_address(host, *args, **options)


def fetch(hub, folder, origins=SMALL_ORIGINS, groups=()):
    download(folder, groups, origins, hub.endpoint)


def files(folder):
    """All files, hidden ones too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


PLACES = {origin.place for origin in SMALL_ORIGINS}


# -- What is fetched


def test_a_folder_is_fetched_and_loads(opening_hub, tmp_path, caplog):
    caplog.set_level("INFO", "mafx")
    fetch(opening_hub, tmp_path / "x")
    assert files(tmp_path / "x") == PLACES | {"download.json"}
    table, room, last = caplog.messages[0], caplog.messages[1], caplog.messages[-1]
    assert "| stable-diffusion-v1-5/stable-diffusion-v1-5 | CreativeML OpenRAIL-M | 4 | 0.8 MB | 0.8 MB |" in table
    assert room.startswith("2.3 MB are to come; ") and "MB free" in room
    assert f"python sample.py --pretrained {tmp_path / 'x'} " in last
    loaded, direct = mafx.load_pretrained(tmp_path / "x"), mafx.load_pretrained(SMALL)
    assert loaded.config == direct.config
    assert loaded.stamp()["weights"] == direct.stamp()["weights"]


def test_a_second_start_fetches_and_sums_nothing(hub, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "mafx")
    fetch(hub, tmp_path)
    hub.requests.clear()
    monkeypatch.setattr(transfers.Checksum, "of", lambda *_: pytest.fail("summed again"))
    fetch(hub, tmp_path)
    assert not hub.contents() and "0.0 MB are to come" in caplog.text


def test_files_that_are_there_are_compared_once(hub, tmp_path, repositories):
    path = tmp_path / UNET_PLACE
    path.parent.mkdir(parents=True)
    path.write_bytes(repositories["stable-diffusion-v1-5/stable-diffusion-v1-5"][UNET])
    fetch(hub, tmp_path)
    assert not any(UNET in name for name in hub.contents())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="is not the published file .expected the sha256 checksum .*; remove it"):
        fetch(hub, tmp_path)
    assert path.read_bytes() == content


# -- What breaks


def test_a_broken_connection_goes_on_where_it_ended(hub, tmp_path):
    hub.breaks[UNET] = 300_000
    fetch(hub, tmp_path)
    first, second = hub.ranges()  # at the hub, which sends on to the other host
    assert first == second and 0 < int(first.removeprefix("bytes=").removesuffix("-")) <= 300_000
    assert files(tmp_path) == PLACES | {"download.json"}


def test_an_interrupted_download_goes_on(hub, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "mafx")
    monkeypatch.setattr(transfers, "ATTEMPTS", 1)
    hub.breaks[UNET] = 300_000
    with pytest.raises(OSError, match=rf"localhost|127.0.0.1:\d+ failed at {UNET_PLACE} .*it goes on"):
        fetch(hub, tmp_path)
    assert UNET_PLACE not in files(tmp_path)
    (part,) = (tmp_path / UNET_PLACE).parent.glob(".*.part")
    begin = part.stat().st_size
    assert 0 < begin <= 300_000
    fetch(hub, tmp_path)
    assert hub.ranges() == [f"bytes={begin}-"] * 2 and "2.0 MB are to come" in caplog.text  # redirected once
    assert files(tmp_path) == PLACES | {"download.json"}


def test_a_server_without_ranges_is_read_from_the_beginning(hub, tmp_path):
    hub.breaks[UNET], hub.ignores_ranges = 300_000, True
    fetch(hub, tmp_path)
    assert hub.ranges() and files(tmp_path) == PLACES | {"download.json"}


@pytest.mark.parametrize("name", [UNET, "unet/config.json"])
def test_other_bytes_are_refused_and_removed(hub, tmp_path, name):
    true = hub.repositories["stable-diffusion-v1-5/stable-diffusion-v1-5"][name]
    hub.instead[name] = true[:-1] + b"x"
    with pytest.raises(InputError, match=f"sent another stable-diffusion-v1-5/{name} than is published .expected the"):
        fetch(hub, tmp_path)
    assert not [path for path in files(tmp_path) if name.rpartition("/")[2] in path]
    hub.instead.clear()
    fetch(hub, tmp_path)
    assert files(tmp_path) == PLACES | {"download.json"}


@pytest.mark.parametrize("name", ["", UNET])
@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, InputError, r"refuses .* .HTTP 401.; .*HF_TOKEN"),
        (403, InputError, r"refuses .* .HTTP 403.; .*HF_TOKEN"),
        (404, InputError, r"does not have .* .HTTP 404.; set HF_ENDPOINT to another mirror"),
        (503, OSError, r"does not give .* .HTTP 503.; give the same command again later"),
    ],
)
def test_refusals_are_one_sentence(hub, tmp_path, name, status, kind, message):
    hub.statuses[name] = status
    with pytest.raises(kind, match=message) as caught:
        fetch(hub, tmp_path)
    assert "\n" not in str(caught.value) and UNET_PLACE not in files(tmp_path)


def test_an_unreachable_server_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(transfers, "WAIT_SECONDS", 0.01)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(
            OSError, match=r"the connection to 127.0.0.1:\d+ failed at the list of files of .*HTTPS_PROXY"
        ):
            download(tmp_path / "x", (), SMALL_ORIGINS, endpoint)
    assert not (tmp_path / "x").exists()


def test_a_file_that_a_mirror_lacks_is_named(hub, tmp_path):
    hub.repositories = {name: dict(content) for name, content in hub.repositories.items()}
    del hub.repositories["zcxu-eric/MagicAnimate"]["appearance_encoder/config.json"]
    with pytest.raises(InputError, match="has no appearance_encoder/config.json in zcxu-eric/MagicAnimate"):
        fetch(hub, tmp_path)
    assert not hub.contents()


def test_files_that_do_not_fit_together_are_found(opening_hub, tmp_path):
    opening_hub.repositories = {name: dict(content) for name, content in opening_hub.repositories.items()}
    files = opening_hub.repositories["zcxu-eric/MagicAnimate"]
    files[SETTINGS] = files[SETTINGS].replace(b'"num_attention_heads": 2', b'"num_attention_heads": 2, "x": 1')
    files["densepose_controlnet/diffusion_pytorch_model.safetensors"] = files[
        "appearance_encoder/diffusion_pytorch_model.safetensors"
    ]
    with pytest.raises(InputError, match="do not fit together:\n.*densepose_controlnet"):
        fetch(opening_hub, tmp_path)


def test_what_else_is_fetched_is_opened_too(opening_hub, tmp_path, monkeypatch, caplog):
    """A small DensePose R-CNN, and a network of a measure that has one matrix."""
    caplog.set_level("INFO", "mafx")
    write_pickle(tmp_path / "network.pkl", published_tensors())
    write_torch_archive(tmp_path / "network.pt", {"a": np.ones((2, 3), np.float32)}.items())
    opening_hub.plain = {name: (tmp_path / name).read_bytes() for name in ("network.pkl", "network.pt")}
    spec = NetworkSpec(("i3d_pretrained_400.pt",), lambda w, x: x @ w["a"], ((1, 2),))
    monkeypatch.setattr(features, "NETWORKS", {"fvd": spec})
    others = [
        dataclasses.replace(origin, name=f"{opening_hub.endpoint}/plain/network{Path(origin.place).suffix}")
        for origin in ORIGINS
        if origin.place in ("densepose/model_final_162be9.pkl", "metrics/i3d_pretrained_400.pt")
    ]
    fetch(opening_hub, tmp_path / "x", [*SMALL_ORIGINS, *others], ["densepose", METRICS])
    assert files(tmp_path / "x") == PLACES | {"download.json"} | {origin.place for origin in others}
    assert f"--weights {tmp_path / 'x' / 'densepose' / 'model_final_162be9.pkl'} --out" in caplog.messages[-1]
    assert f"--metric_networks {tmp_path / 'x' / 'metrics'}" in caplog.messages[-1]
    assert "Put resnet-50-kinetics.pth from https://drive.google.com/" in caplog.messages[-1]
    monkeypatch.setitem(features.NETWORKS, "fvd", dataclasses.replace(spec, input_shapes=((1, 5),)))
    with pytest.raises(InputError, match="i3d_pretrained_400.pt: expected the network of fvd, found tensors of other"):
        fetch(opening_hub, tmp_path / "x", [*SMALL_ORIGINS, *others], [METRICS])


def test_a_server_that_sends_too_much_is_left(hub, tmp_path):
    hub.instead[UNET] = bytes(50_000_000)
    with pytest.raises(
        InputError, match=f"sent another {UNET_PLACE} than is published .expected 738152 bytes, found 7"
    ):
        fetch(hub, tmp_path)


# -- Tokens, mirrors and proxies


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    plain = dataclasses.replace(SMALL_ORIGINS[-1], repository="", name=f"{hub.endpoint}/plain/settings")
    hub.plain["settings"] = hub.repositories["zcxu-eric/MagicAnimate"][SETTINGS]
    fetch(hub, tmp_path, [*SMALL_ORIGINS[:-1], plain])
    tokens = {path.split("/")[1]: token for _, path, _, token in hub.requests}
    assert tokens["api"] == tokens["stabilityai"] == "Bearer hf_secret"
    assert tokens["cdn"] is None and tokens["plain"] is None


def test_plain_addresses_are_fetched_with_the_size_that_the_server_says(hub, tmp_path, monkeypatch):
    content = hub.repositories["zcxu-eric/MagicAnimate"][SETTINGS]
    hub.plain["settings"] = content
    plain = dataclasses.replace(SMALL_ORIGINS[-1], repository="", name=f"{hub.endpoint}/plain/settings")
    assert find_sources([plain])[plain].size == len(content)
    hub.breaks["settings"] = 100
    fetch(hub, tmp_path, [*SMALL_ORIGINS[:-1], dataclasses.replace(plain, size=len(content))])
    assert (tmp_path / SETTINGS).read_bytes() == content and hub.ranges() == ["bytes=100-"]
    wrong = dataclasses.replace(plain, sha256="1234")
    (tmp_path / SETTINGS).unlink()
    with pytest.raises(InputError, match="expected the sha256 checksum 1234, found .* by hand, or leave out its group"):
        fetch(hub, tmp_path, [*SMALL_ORIGINS[:-1], wrong])


class Proxy(BaseHTTPRequestHandler):
    """A proxy of HTTP: it is asked for whole addresses."""

    def do_GET(self):
        self.server.asked.append(self.path)
        url = urlsplit(self.path)
        connection = http.client.HTTPConnection("127.0.0.1", int(self.server.behind))
        connection.request("GET", f"{url.path}?{url.query}", headers=dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


# -- The command


START = """
import os, resource, signal, sys
if "LARGEST_FILE" in os.environ:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LARGEST_FILE"]),) * 2)
sys.path.insert(0, {tests!r})
from test_download import SMALL_ORIGINS
from mafx.commands import run_command
from mafx.pretrained import download
def main(args):
    download.download(args.weights, args.groups, SMALL_ORIGINS)
sys.exit(run_command(download.NAME, main, download.parse(sys.argv[1:])))
"""


def start(folder, hub, *flags, **options):
    """The command in a process of its own; HF_ENDPOINT names the mirror."""
    environment = {name: x for name, x in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "PYTHONPATH": str(ROOT)} | options.pop("environment", {})
    run = [sys.executable, "-c", START.format(tests=str(ROOT / "tests")), str(folder), *flags]
    return subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options)


def test_the_command_takes_mirrors_and_proxies(hub, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.behind, proxy.asked = hub.port, []
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        mirror = {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": f"http://127.0.0.1:{proxy.server_address[1]}"}
        process = start(tmp_path, hub, environment=mirror)
        _, said = process.communicate(timeout=300)
        proxy.shutdown()
    assert process.returncode == 0, said
    assert files(tmp_path) == PLACES | {"download.json"}
    assert {urlsplit(url).netloc.partition(":")[0] for url in proxy.asked} == {"hub.invalid", "localhost"}
    assert said.count("All files are there") == 1 and "Traceback" not in said and "HTTP Request" not in said


def test_a_full_disk_is_one_sentence_and_the_download_goes_on(hub, tmp_path):
    process = start(tmp_path, hub, environment={"LARGEST_FILE": "400000"})
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in said
    assert said.splitlines()[-1].startswith(f"{command.NAME}: cannot write {UNET_PLACE}: ")
    assert UNET_PLACE not in files(tmp_path)
    fetch(hub, tmp_path)
    assert files(tmp_path) == PLACES | {"download.json"} and hub.ranges()


def test_a_disk_that_is_too_small_is_found_before(hub, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2, 1, 1_000_000))
    with pytest.raises(InputError, match="expected room for 2.3 MB in .*, found 1.0 MB; make room"):
        fetch(hub, tmp_path)
    assert not hub.contents()


def test_an_interrupted_command_says_that_it_goes_on(hub, tmp_path):
    content = dict(hub.repositories["stable-diffusion-v1-5/stable-diffusion-v1-5"])
    hub.repositories = hub.repositories | {"stable-diffusion-v1-5/stable-diffusion-v1-5": content}
    hub.stalls = {UNET: 300_000}
    process = start(tmp_path, hub)
    part = (tmp_path / UNET_PLACE).parent
    for _ in range(600):
        if sum(path.stat().st_size for path in part.glob(".*.part")) >= 200_000:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        said.splitlines()[-1]
        == f"{command.NAME}: interrupted; what is done is kept, and the same command goes on from there"
    )
    assert UNET_PLACE not in files(tmp_path) and list(part.glob(".*.part"))


def test_groups_are_checked_by_the_parser(capsys):
    assert parse(["x", "--with", "densepose", "metrics"]).groups == ["densepose", METRICS]
    with pytest.raises(SystemExit):
        parse(["x", "--with", "everything"])
    assert "invalid choice: 'everything'" in capsys.readouterr().err


def test_the_table_has_the_files_that_are_read():
    """Layout and features look for these names."""
    places = {origin.place for origin in ORIGINS} | set(BY_HAND)
    assert {f"{folder}/config.json" for folder in REQUIRED} <= places
    for part in PARTS:
        assert any(place.rpartition(".")[0] == f"{part.folder}/{part.stem}" for place in places), part
    assert {f"metrics/{file}" for spec in NETWORKS.values() for file in spec.files} <= places
    assert json.dumps(sorted(places)).isascii() and len(places) == len(ORIGINS) + len(BY_HAND)
