import pickle

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from mafx import media
from mafx.data.clips import HALVES, FolderClip, PuppetClip, puppet_clips, puppet_images
from mafx.data.latents import LatentClip
from mafx.densepose import read_labels
from mafx.errors import InputError
from mafx.puppets import STANDING, Identity, draw_puppet


def test_puppets_of_training_and_test_have_nothing_in_common():
    train, test = puppet_clips("train", 50, (32, 32)), puppet_clips("test", 50, (32, 32))
    assert not {c.identity for c in train} & {c.identity for c in test}
    assert not {c.movement for c in train} & {c.movement for c in test}
    video, motion = test[0].read(np.array([0, 5]))
    assert video.shape == motion.shape == (2, 32, 32, 3)
    assert (read_labels(motion)[1] == 0).all()


def test_puppets_stand_still_in_frame_0():
    a, b = (PuppetClip(identity=3, movement=movement, size=(32, 32)) for movement in (1, 2))
    (a_first, a_later), (b_first, b_later) = (clip.read(np.array([0, 20]))[0] for clip in (a, b))
    np.testing.assert_array_equal(a_first, b_first)
    assert (a_later != b_later).any()


def test_frames_do_not_depend_on_what_else_is_read():
    clip = puppet_clips("train", 1, (32, 32))[0]
    np.testing.assert_array_equal(clip.read(np.array([3, 7]))[0][1], clip.read(np.array([7]))[0][0])


def test_folder_of_frames(tmp_path):
    for kind, offset in (("images", 0), ("densepose", 100)):
        (tmp_path / kind).mkdir()
        for i in range(5):
            Image.fromarray(np.full((4, 6, 3), i + offset, np.uint8)).save(tmp_path / kind / f"{i:04d}.png")
    clip = FolderClip(tmp_path, first=1, last=4)
    assert clip.frames == 3
    video, motion = clip.read(np.array([2, 0]))
    assert video[:, 0, 0, 0].tolist() == [3, 1] and motion[:, 0, 0, 0].tolist() == [103, 101]
    (tmp_path / "densepose" / "0002.png").unlink()
    with pytest.raises(InputError, match="only one of them for 0002.png"):
        FolderClip(tmp_path)
    with pytest.raises(InputError, match="found none"):
        FolderClip(tmp_path / "images")


def test_frames_of_a_folder_are_in_natural_order(tmp_path):
    for kind in ("images", "densepose"):
        (tmp_path / kind).mkdir()
        for i in (1, 2, 10):
            Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(tmp_path / kind / f"{i}.png")
    clip = pickle.loads(pickle.dumps(FolderClip(tmp_path, first=1)))  # as workers receive it
    assert clip.frames == 2
    assert clip.read(np.arange(2))[0][:, 0, 0, 0].tolist() == [2, 10]


def test_pictures_of_puppets_are_of_people_whom_no_clip_shows():
    pictures = puppet_images(100, (32, 32), hidden=1.0)
    others = {clip.identity for split in ("train", "test") for clip in puppet_clips(split, 100, (32, 32))}
    assert not {clip.identity for clip in pictures} & others
    assert len({clip.name for clip in pictures}) == 100 and {clip.frames for clip in pictures} == {1}
    standing = draw_puppet(Identity.from_seed(pictures[5].identity, 1.0), STANDING, (32, 32))[0]
    video, _ = pictures[5].read(np.arange(1))
    assert video.shape == (1, 32, 32, 3) and (video[0] != standing).mean() > 0.05, "it moves"
    assert pictures[5].fingerprint != puppet_images(100, (32, 32))[5].fingerprint


def test_a_folder_may_hold_hidden_files_and_suffixes_in_upper_case(tmp_path):
    for kind in ("images", "densepose"):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (6, 4)).save(tmp_path / kind / "1.PNG")
    (tmp_path / "images" / "._1.png").write_text("not a picture")
    clip = FolderClip(tmp_path)
    assert clip.frames == 1
    assert clip.read(np.array([0]))[1].shape == (1, 4, 6, 3)


def test_real_clip():
    folder = SHARED / "data" / "clips" / "teaser"
    if not folder.is_dir():
        pytest.skip("the real clip (../shared/data/clips) is not here")
    clip = FolderClip(folder, last=120)
    assert clip.frames == 120
    assert clip.read(np.array([0, 119]))[0].shape == (2, 120, 120, 3)


def test_a_clip_without_frames_is_refused(tmp_path):
    for half in HALVES:
        media.write_video(tmp_path / half, np.zeros((4, 8, 8, 3), np.uint8), 25)
    with pytest.raises(InputError, match="expected more than 4 frames in .*, found 4"):
        FolderClip(tmp_path, 4)


def test_a_clip_of_latents_decodes_its_renders_alone(tmp_path, rng):
    for half in HALVES:
        media.write_video(tmp_path / half, rng.integers(0, 256, (4, 8, 8, 3), np.uint8), 25)
    np.save(tmp_path / "latents.npy", np.ones((4, 2, 2, 4), np.float16))
    clip = FolderClip(tmp_path)
    renders = clip.read(np.array([2, 0]))[1]
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"junk")
    latents, motion = LatentClip(clip, tmp_path / "latents.npy").read(np.array([2, 0]))
    assert latents.shape == (2, 2, 2, 4)
    np.testing.assert_array_equal(motion, renders)
