"""`python -m mafx.inspect` as users call it."""

import json

import numpy as np
import pytest
from micro import example
from PIL import Image

import mafx
from mafx import media
from mafx.errors import InputError
from mafx.inspect.__main__ import main, parse_place
from mafx.inspect.views import chosen_steps, middle_of_person


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Two of three steps of the bundled model and a puppet."""
    out = tmp_path_factory.mktemp("seen") / "out"
    main(
        [
            f"--out={out}",
            "--cache=",
            "--frames=5",
            "--window=4",
            "--overlap=1",
            "--steps=3",
            "--shown=2",
            "--place=9,17",
        ]
    )
    return out


def test_all_pictures_are_written(seen):
    names = {"attention", "control", "frames", "index", "path", "residuals"}
    assert {path.name for path in seen.iterdir()} == {f"{name}.png" for name in names} | {"inside.json"}
    shapes = {name: media.read_image(seen / f"{name}.png").shape for name in names}
    index = shapes.pop("index")
    assert index[0] > sum(shape[0] for shape in shapes.values()) and index[1] == max(s[1] for s in shapes.values())


def test_figures_are_those_of_the_animation(seen):
    figures = json.loads((seen / "inside.json").read_text())
    assert figures["frame"] == 2 and figures["place"] == [9, 17] and 2 in figures["window"]
    assert [(step["step"], step["time"]) for step in figures["steps"]] == [(0, 999), (2, 332)]
    first = figures["steps"][0]
    assert list(first["attention"]) == [
        "mid_block/attentions_0",
        *(f"up_blocks_{i}/attentions_{j}" for i in (0, 1) for j in (0, 1)),
    ]
    for attended in first["attention"].values():
        assert 0 < attended["reference"] < 1 and 0 < attended["most"] <= attended["reference"] + 1e-6
        assert all(0 <= x < 32 for x in attended["most_at"])
    # The bundled model needs its motion: without, at pure noise, it does not know where the person is.
    assert first["change_by_residuals"] > 0.1
    for matrix in figures["frames"].values():
        assert np.shape(matrix) == (4, 4)
        np.testing.assert_allclose(np.sum(matrix, 1), 1, atol=1e-3)
    assert all(size["added"] > 0 and size["base"] > 0 for size in first["residuals"].values())


def test_the_last_prediction_is_the_result(seen):
    """In the strip, the picture of the last step stands beside the result. Two windows are fused for that alone."""
    strip = media.read_image(seen / "path.png").astype(int)
    columns = np.flatnonzero((strip[40:160] < 250).any(-1).any(0))
    starts = [x for x in columns if x - 1 not in columns and x + 100 in columns]
    last, result = (strip[40:160, x : x + 128] for x in starts[-2:])
    first = strip[40:160, starts[-3] : starts[-3] + 128]
    assert np.abs(last - result).mean() < 0.5 * np.abs(first - result).mean() + 2


def test_nothing_is_replaced_unasked(seen):
    with pytest.raises(InputError, match=r"inside.json exists; choose another --out or give --overwrite"):
        main([f"--out={seen}", "--cache="])


def test_shares_are_measured_on_held_out_clips(tmp_path):
    settings = ("--frames=4", "--window=4", "--overlap=1", "--steps=1", "--stride=8")
    main([f"--out={tmp_path}", "--cache=", "--split=test", "--clips=2", *settings])
    shares = json.loads((tmp_path / "parts.json").read_text())
    assert shares["clips"] == 2 and list(shares["steps"]) == ["0"]
    mean, low, high = shares["mean"]["up_blocks_1/attentions_1"]["part"]
    assert 0.25 < low <= mean <= high < 1
    assert media.read_image(tmp_path / "parts.png").size


def test_published_weights_are_looked_into(published, tmp_path):
    clip = example((64, 64), 2)
    Image.fromarray(clip.reference).save(tmp_path / "person.png")
    media.write_video(tmp_path / "motion", clip.motion, 8)
    files = (f"--reference={tmp_path / 'person.png'}", f"--motion={tmp_path / 'motion'}", f"--out={tmp_path / 'out'}")
    settings = ("--size=64", "--window=2", "--overlap=0", "--steps=2", "--shown=1")
    main([f"--pretrained={published}", "--cache=", *files, *settings])
    figures = json.loads((tmp_path / "out" / "inside.json").read_text())
    assert len(figures["steps"]) == 1 and len(figures["steps"][0]["attention"]) == 10 and len(figures["frames"]) == 40
    assert figures["steps"][0]["attention"]["up_blocks_3/attentions_2"]["grid"] == [8, 8]
    assert figures["place"] == list(middle_of_person(clip.motion[1]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--frames=2", "--frame=2"], "expected a frame from 0 to 1, found 2"),
        (["--frames=2", "--place=3,64", "--steps=1"], "columns 0 to 63, found 3,64"),
        (["--reuse=2", "--frames=2"], "found a reuse of 2; take 1"),
    ],
)
def test_what_is_not_there_is_said_before_anything_runs(flags, message, tmp_path, monkeypatch):
    monkeypatch.setattr(mafx.program.Program, "run", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(InputError, match=message):
        main([f"--out={tmp_path}", "--cache=", *flags])


def test_steps_are_evenly_spaced():
    assert chosen_steps(25, 5) == [0, 6, 12, 18, 24]
    assert chosen_steps(2, 5) == [0, 1] and chosen_steps(1, 1) == [0]


def test_places_are_read():
    assert parse_place("12, 3") == (12, 3)
    with pytest.raises(Exception, match="expected a row and a column"):
        parse_place("12")


def test_the_middle_of_a_person_is_on_the_person():
    clip = example((32, 32), 3)
    y, x = middle_of_person(clip.motion[0])
    assert clip.labels[0][y, x] > 0
    with pytest.raises(InputError, match="found nobody"):
        middle_of_person(np.broadcast_to(np.uint8((68, 1, 84)), (8, 8, 3)))
