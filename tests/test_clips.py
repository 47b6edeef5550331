import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from mafx.data.clips import FolderClip, puppet_clips
from mafx.densepose import read_labels
from mafx.errors import InputError


def test_puppets_of_training_and_test_have_nothing_in_common():
    train, test = puppet_clips("train", 50, (32, 32)), puppet_clips("test", 50, (32, 32))
    assert not {c.identity for c in train} & {c.identity for c in test}
    assert not {c.movement for c in train} & {c.movement for c in test}
    video, motion = test[0].read(np.array([0, 5]))
    assert video.shape == motion.shape == (2, 32, 32, 3)
    assert (read_labels(motion)[1] == 0).all()


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


def test_real_clip():
    folder = SHARED / "data" / "clips" / "teaser"
    if not folder.is_dir():
        pytest.skip("the real clip (../shared/data/clips) is not here")
    clip = FolderClip(folder, last=120)
    assert clip.frames == 120
    assert clip.read(np.array([0, 119]))[0].shape == (2, 120, 120, 3)
