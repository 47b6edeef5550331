"""`python -m mafx.densepose` as users call it."""

import subprocess
import sys

import pytest
from conftest import SHARED
from micro import example

from mafx import compiling, media
from mafx.densepose import draw_labels, read_labels
from mafx.densepose.__main__ import main
from mafx.densepose.colour_maps import known_palettes
from mafx.errors import InputError

TINY = SHARED / "fixtures" / "densepose" / "tiny"


@pytest.fixture(scope="module")
def labels():
    return read_labels(example((64, 64), 6).motion)[0]


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    """The cache of compiled programs stays that of the tests."""
    monkeypatch.setattr(compiling, "keep_programs", lambda folder: None)


@pytest.fixture
def tiny():
    if not TINY.is_dir():
        pytest.skip("the DensePose models (../shared/fixtures/densepose) are not here")
    return TINY


def test_a_video_in_another_map_is_converted_once(tmp_path, labels, caplog):
    parula = next(palette for palette in known_palettes() if palette.name == "parula on black")
    media.write_video(tmp_path / "parula.mp4", parula.colours[labels], 12, quality=6)
    arguments = [str(tmp_path / "parula.mp4"), "--out", str(tmp_path / "motion.mkv")]
    with caplog.at_level("INFO"):
        main(arguments)
    assert "6 frames from labels drawn with parula on black, 0 of them with nobody" in caplog.text
    motion, fps = media.read_video(tmp_path / "motion.mkv")
    found, distances = read_labels(motion)
    assert fps == 12 and not distances.any() and (found == labels).mean() > 0.96
    with pytest.raises(InputError, match="exists; choose another --out or give --overwrite"):
        main(arguments)
    main([*arguments, "--overwrite", "--frames", "2"])
    assert len(media.read_video(tmp_path / "motion.mkv")[0]) == 2


def test_bad_flags_are_one_line(tmp_path):
    for flags, message in (
        (["--out", "motion.avi"], "expected the suffix"),
        (["--out", "motion.mp4", "--person", "first"], "number of a person from the left"),
        (["--out", "motion.mp4", "--kind", "film"], "expected auto, people, renders, iuv, dump"),
        (["--out", "motion.mp4"], "there is no video at nothing.mp4"),
    ):
        command = [sys.executable, "-m", "mafx.densepose", "nothing.mp4", *flags]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not list(tmp_path.iterdir())


def test_published_weights_draw_what_detectron2_draws(tmp_path, tiny):
    for name in ("a", "flat"):
        picture = str(tiny / "pictures" / f"{name}.png")
        flags = ["--weights", str(tiny / "model_final.pkl"), "--raw", "--min_size", "160", "--max_size", "256"]
        main([picture, "--out", str(tmp_path / f"{name}.png"), "--dtype", "float32", *flags])
        drawn, wanted = (media.read_image(folder / f"{name}.png") for folder in (tmp_path, tiny / "renders"))
        assert (drawn == wanted).all(-1).mean() > 0.9999
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.png", "a.png.json", "flat.png", "flat.png.json"], "nothing is left over"


def test_a_dump_is_drawn(tmp_path, tiny):
    render = media.read_image(next((tiny / "renders").glob("a.png")))
    size = "x".join(map(str, render.shape[:2]))
    main([str(tiny / "dump.pkl"), "--raw", "--size", size, "--out", str(tmp_path / "r.png")])
    drawn = media.read_image(tmp_path / "r.png")
    assert drawn.shape == render.shape and read_labels(drawn)[0].any()
    assert (draw_labels(read_labels(drawn)[0]) == drawn).all()
    with pytest.raises(InputError, match="give --size HxW instead"):
        main([str(tiny / "dump.pkl"), "--raw", "--out", str(tmp_path / "other.png")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.png", "r.png.json"]
