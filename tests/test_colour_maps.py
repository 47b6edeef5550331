import numpy as np
import pytest
from conftest import SHARED
from micro import example

from mafx import media
from mafx.densepose import PALETTE, draw_labels, read_labels
from mafx.densepose.colour_maps import find_reader, is_iuv, known_palettes, read_drawn, read_iuv, recognise
from mafx.errors import InputError


@pytest.fixture(scope="module")
def labels():
    return read_labels(example((128, 96), 6).motion)[0]


def palette(name):
    return next(known for known in known_palettes() if known.name == name)


def test_maps_have_the_colours_that_their_makers_state():
    np.testing.assert_array_equal(palette("viridis").colours, PALETTE)
    jet = palette("opencv's jet").colours  # dark blue, over green, to dark red
    assert tuple(jet[0]) == (0, 0, 128) and jet[12].argmax() == 1 and tuple(jet[24]) == (128, 0, 0)
    summer = palette("summer").colours.astype(int)  # from (0, 128, 102) to (255, 255, 102), in a straight line
    np.testing.assert_allclose(summer, np.linspace((0, 127.5, 102), (255, 255, 102), 25), atol=1.5)
    assert tuple(palette("parula").colours[24]) == (249, 251, 14)  # MATLAB's last one is (0.9763, 0.9831, 0.0538)


def test_transparent_parts_are_blended_as_vid2densepose_blends_them():
    blended = palette("viridis at 70%").colours
    assert [tuple(blended[k]) for k in (0, 1, 12, 24)] == [(68, 1, 84), (70, 11, 94), (43, 101, 123), (197, 162, 51)]


@pytest.mark.parametrize(
    "name",
    [
        "viridis",
        "parula",
        "inferno on black",
        "opencv's jet, red and blue swapped",
        "magma at 70%",
        "YlGnBu on black at 70%",
    ],
)
def test_a_compressed_video_in_another_map_is_recognised_and_read(tmp_path, labels, name):
    media.write_video(tmp_path / "v.mp4", palette(name).colours[labels], 10, quality=6)
    video = media.read_video(tmp_path / "v.mp4")[0]
    source, read = find_reader(video)
    assert source == f"labels drawn with {name}"
    found = np.stack([read(frame) for frame in video])
    assert found.dtype == np.uint8 and (found == labels).mean() > 0.975


def test_pictures_of_people_are_no_labels(rng, labels):
    clip = example((128, 96), 6)
    assert find_reader(clip.video) is None
    smooth = np.linspace(0, 255, 96).astype(np.uint8)
    gradient = np.broadcast_to(smooth[None, None, :, None], (2, 128, 96, 3))
    assert find_reader(gradient) is None, "a grey gradient is a photograph"
    assert find_reader(rng.integers(0, 256, (2, 64, 64, 3), np.uint8)) is None
    assert find_reader(np.broadcast_to(PALETTE[0], (2, 64, 64, 3))) is None, "nobody is shown"


def test_iuv_images_are_recognised_by_their_index(labels, rng):
    surface = rng.integers(0, 256, (*labels.shape, 2)) * (labels > 0)[..., None]
    iuv = np.concatenate([surface, labels[..., None]], -1).astype(np.uint8)
    assert is_iuv(iuv) and not is_iuv(draw_labels(labels))
    source, read = find_reader(iuv)
    assert source == "IUV images"
    np.testing.assert_array_equal(np.stack([read(frame) for frame in iuv]), labels)
    with pytest.raises(InputError, match="expected an IUV render with parts 0 to 24"):
        read_iuv(draw_labels(labels)[0])


def test_real_renders_survive_our_compression_and_other_maps(tmp_path):
    folder = SHARED / "data" / "applications" / "densepose"
    if not folder.is_dir():
        pytest.skip("../shared is not there")
    for path in sorted(folder.iterdir())[:2]:
        truth = read_labels(media.read_video(path, limit=4)[0])[0]
        for name, least in (("viridis", 0.99), ("parula", 0.98), ("opencv's jet on black", 0.98)):
            media.write_video(tmp_path / "v.mp4", palette(name).colours[truth], 25, quality=6)
            video = media.read_video(tmp_path / "v.mp4")[0]
            found = recognise(video)
            assert found.name == name
            assert (np.stack([read_drawn(frame, found.colours) for frame in video]) == truth).mean() > least, path.name
