from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mafx import media
from mafx.errors import InputError


def clip(frames=5, h=48, w=32):
    """A video of smooth moving colours, which survive compression."""
    f, y, x = np.meshgrid(np.arange(frames), np.arange(h), np.arange(w), indexing="ij")
    return np.stack([100 + 20 * f, 2 * y + 50, 3 * x + 60], -1).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webp", ".gif", ""])
def test_video_round_trip(tmp_path, suffix):
    video = clip()
    media.write_video(tmp_path / f"v{suffix}", iter(video), 10)
    got, fps = media.read_video(tmp_path / f"v{suffix}")
    assert got.shape == video.shape
    assert fps == (10 if suffix else media.DEFAULT_FPS)
    tolerance = {"": 0, ".mkv": 0, ".mp4": 12, ".webp": 16, ".gif": 60}[suffix]  # a gif has 256 colours
    assert np.abs(got.astype(int) - video).max() <= tolerance
    assert [p.name for p in tmp_path.iterdir()] == [f"v{suffix}"]


def test_better_quality_takes_more_bytes_and_loses_less(tmp_path, rng):
    video, lost, sizes = rng.integers(0, 256, (3, 32, 32, 1), np.uint8).repeat(3, axis=-1), [], []
    for quality in (4, 40):
        media.write_video(tmp_path / "v.mp4", video, 10, quality)
        lost.append(np.abs(media.read_video(tmp_path / "v.mp4")[0].astype(int) - video).mean())
        sizes.append((tmp_path / "v.mp4").stat().st_size)
    assert lost[0] < lost[1] / 4 and sizes[0] > sizes[1]


def test_an_odd_video_is_written_without_loss(tmp_path, rng):
    video = rng.integers(0, 256, (3, 33, 47, 3), np.uint8)
    media.write_video(tmp_path / "v.mkv", video, 10)
    np.testing.assert_array_equal(media.read_video(tmp_path / "v.mkv")[0], video)


def test_a_png_is_one_picture(tmp_path):
    media.write_video(tmp_path / "v.png", clip(1), 10)
    np.testing.assert_array_equal(media.read_image(tmp_path / "v.png"), clip(1)[0])
    with pytest.raises(InputError, match=r"expected one frame for a picture, found more"):
        media.write_video(tmp_path / "w.png", clip(2), 10)
    assert [path.name for path in tmp_path.iterdir()] == ["v.png"]


@pytest.mark.parametrize("name", ["v.mp4", "v.gif", "v"])
def test_a_video_without_frames_is_not_written(tmp_path, name):
    with pytest.raises(InputError, match="expected at least one frame"):
        media.write_video(tmp_path / name, iter(()), 10)
    assert not list(tmp_path.iterdir())


def test_a_stream_holds_one_frame_at_a_time(tmp_path):
    media.write_video(tmp_path / "v.mp4", clip(6), 10)
    stream = media.stream_video(tmp_path / "v.mp4", stride=2, limit=2)
    assert (stream.length, stream.fps) == (2, 5)
    whole = media.read_video(tmp_path / "v.mp4")[0]
    np.testing.assert_array_equal(np.stack(list(stream.frames)), whole[[0, 2]])


def test_mp4_plays_in_browsers(tmp_path):
    media.write_video(tmp_path / "v.mp4", clip(h=47, w=31), Fraction(30000, 1001))
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == (
            "h264",
            "yuv420p",
            Fraction(30000, 1001),
        )
        assert (stream.height, stream.width) == (48, 32)  # 4:2:0 needs even sides
    head = (tmp_path / "v.mp4").read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # starts before it is loaded


def test_stride_and_limit(tmp_path):
    media.write_video(tmp_path / "v", clip(7), 25)
    got, fps = media.read_video(tmp_path / "v", stride=3, limit=2)
    np.testing.assert_array_equal(got, clip(7)[[0, 3]])
    assert fps == Fraction(25, 3)


def test_folder_is_read_in_natural_order(tmp_path):
    for i in (10, 9, 1):
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    assert media.read_video(tmp_path)[0][:, 0, 0, 0].tolist() == [1, 9, 10]


def test_natural_order_compares_numbers_as_numbers():
    names = ["b2", "a10.png", "a9.png", "a09.png", "a", "²", "10", "9"]
    assert sorted(names, key=media.natural_order) == ["9", "10", "a", "a09.png", "a9.png", "a10.png", "b2", "²"]


def test_picture_files_are_the_visible_pictures_of_a_folder(tmp_path):
    for name in ("10.png", "9.PNG", "._9.png", "notes.txt", "1.jpeg"):
        (tmp_path / name).touch()
    assert [path.name for path in media.picture_files(tmp_path)] == ["1.jpeg", "9.PNG", "10.png"]
    assert media.picture_files(tmp_path / "nowhere") == []


def test_a_picture_is_a_video_of_one_frame(tmp_path):
    Image.new("RGB", (4, 2)).save(tmp_path / "a.png")
    assert media.read_video(tmp_path / "a.png")[0].shape == (1, 2, 4, 3)


def test_hidden_files_are_no_frames(tmp_path):
    media.write_video(tmp_path / "v", clip(2), 25)
    (tmp_path / "v" / "._00000.png").write_bytes(b"not a picture")
    assert len(media.read_video(tmp_path / "v")[0]) == 2


def test_suffixes_may_be_in_upper_case(tmp_path):
    for suffix in sorted(media.VIDEO_FORMATS - {".png"}):
        lower, upper = tmp_path / f"v{suffix}", tmp_path / f"v{suffix.upper()}"
        for path in (lower, upper):
            media.write_video(path, clip(), 10)
        assert upper.read_bytes()[:4] == lower.read_bytes()[:4], "the formats differ"
        (a, a_fps), (b, b_fps) = (media.read_video(path) for path in (lower, upper))
        assert a.shape == b.shape and a_fps == b_fps
        assert np.abs(a.astype(int) - b).max() <= 12  # H.264 of small frames varies between runs


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    media.write_video("~/v.gif", clip(), 10)
    assert (tmp_path / "v.gif").exists()
    assert len(media.read_video("~/v.gif")[0]) == 5
    Image.new("RGB", (4, 2)).save(tmp_path / "picture.png")
    assert media.read_image("~/picture.png").shape == (2, 4, 3)
    with pytest.raises(InputError, match="there is no folder"):
        media.check_writable(Path("~/nowhere/v.mp4"))


def test_an_open_file_is_read_like_a_path(tmp_path):
    media.write_video(tmp_path / "v", clip(1), 25)
    with (tmp_path / "v" / "00000.png").open("rb") as file:
        np.testing.assert_array_equal(media.read_image(file), clip(1)[0])


def test_pictures_of_every_kind(tmp_path):
    alpha = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    alpha.putpixel((1, 0), (255, 0, 0, 0))
    alpha.save(tmp_path / "alpha.png")
    assert media.read_image(tmp_path / "alpha.png").tolist() == [[[255, 0, 0], [255, 255, 255]]]

    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert media.read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 128, 255]

    alpha.convert("RGB").quantize(2).save(tmp_path / "palette.png")
    assert media.read_image(tmp_path / "palette.png").shape == (1, 2, 3)

    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert media.read_image(tmp_path / "turned.jpg").shape == (8, 4, 3)


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "junk.png").write_bytes(b"junk")
    (tmp_path / "nothing").mkdir()
    media.write_video(tmp_path / "whole.mp4", clip(), 10)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:300])
    for read, name, message in (
        (media.read_video, "absent.mp4", "there is no video"),
        (media.read_video, "empty.mp4", "not a video that can be read"),
        (media.read_video, "cut.mp4", "holds no video stream"),
        (media.read_video, "nothing", "holds no frame"),
        (media.read_image, "junk.png", "not a picture"),
        (media.read_image, "absent.png", "there is no picture"),
    ):
        with pytest.raises(InputError, match=message):
            read(tmp_path / name)
    with pytest.raises(InputError, match="at least 1"):
        media.read_video(tmp_path / "whole.mp4", stride=0)


def test_what_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.mp4").mkdir()
    Path("others").mkdir()
    Path("others", "notes.txt").write_text("keep me")
    for name, message in (
        ("v.avi", "expected the suffix"),
        ("no/v.mp4", "there is no folder"),
        ("folder.mp4", "it is a folder"),
        ("", "'.': expected the name of a video"),
        (".", "'.': expected the name of a video"),
        ("..", "'..': expected the name of a video"),
        ("folder.mp4/..", "expected the name of a video"),
        ("/", "'/': expected the name of a video"),
        ("others", r"other files than frames \(notes.txt\)"),
    ):
        with pytest.raises(InputError, match=message):
            media.check_writable(Path(name))
        with pytest.raises(InputError, match=message):
            media.write_video(name, clip(), 10)
    assert Path("others", "notes.txt").read_text() == "keep me"


def test_a_folder_of_frames_is_replaced(tmp_path):
    media.write_video(tmp_path / "v", clip(5), 10)
    media.write_video(tmp_path / "v", clip(3), 10)
    np.testing.assert_array_equal(media.read_video(tmp_path / "v")[0], clip(3))


def test_a_failed_write_leaves_what_was_there(tmp_path):
    media.write_video(tmp_path / "v.mp4", clip(), 10)
    before = (tmp_path / "v.mp4").read_bytes()
    with pytest.raises(ValueError):
        media.write_video(tmp_path / "v.mp4", clip().astype(np.float64), 10)
    assert (tmp_path / "v.mp4").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_fit():
    image = np.zeros((40, 20, 3), np.uint8)
    image[10:30] = 200
    cropped, padded, stretched = (media.fit(image, (16, 16), how, (1, 2, 3)) for how in media.FITS)
    assert cropped.shape == padded.shape == stretched.shape == (16, 16, 3)
    assert (cropped[2:-2] == 200).all()  # the middle half of the rows
    assert (
        (padded[:, :4] == (1, 2, 3)).all() and (padded[:, 12:] == (1, 2, 3)).all() and (padded[6:10, 4:12] > 190).all()
    )
    assert (stretched[:3] == 0).all() and (stretched[6:10] > 190).all()


def test_side_by_side():
    video = clip(3, 4, 6)
    together = media.side_by_side(video[0], video, video)
    assert together.shape == (3, 4, 18, 3)
    np.testing.assert_array_equal(together[2, :, :6], video[0])
    np.testing.assert_array_equal(together[2, :, 6:12], video[2])


def test_enlarge_repeats_pixels():
    picture = clip(1, 2, 3)[0]
    large = media.enlarge(picture, 3)
    assert large.shape == (6, 9, 3)
    np.testing.assert_array_equal(large[1::3, 1::3], picture)
    np.testing.assert_array_equal(large[:3, :3], np.broadcast_to(picture[0, 0], (3, 3, 3)))


def test_rounding():
    assert media.to_uint8(np.array([-1, 0, 0.5, 1, 2])).tolist() == [0, 0, 128, 255, 255]
