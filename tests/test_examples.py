import dataclasses
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from mafx.data.clips import puppet_clips
from mafx.data.examples import ExampleOptions, Joint, batches, draw_example, read_example
from mafx.data.latents import CHUNK, cache_latents
from mafx.densepose import FLIPPED, read_labels
from mafx.errors import InputError

OPTIONS = ExampleOptions(frames=3, stride=4, distance=10, size=(32, 32))


@dataclasses.dataclass(frozen=True)
class Counter:
    """A clip whose frames show their own number."""

    frames: int = 40
    name: str = "counter"
    fps: Fraction = Fraction(25)
    fingerprint: str = "numbers"

    def read(self, indices):
        picture = np.broadcast_to(np.asarray(indices, np.uint8)[:, None, None, None], (len(indices), 8, 8, 3))
        return picture, picture + np.uint8(100)

    def read_motion(self, indices):
        return self.read(indices)[1]


def numbers(example):
    return (
        int(example["reference"][0, 0, 0]),
        example["video"][:, 0, 0, 0].astype(int),
        example["motion"][:, 0, 0, 0].astype(int),
    )


def test_stride_distance_and_alignment(rng):
    for _ in range(50):
        reference, video, motion = numbers(draw_example(Counter(), dataclasses.replace(OPTIONS, size=(8, 8)), rng))
        assert (np.diff(video) == 4).all() and video[0] >= 0 and video[-1] < 40
        assert abs(reference - video[0]) >= 10
        np.testing.assert_array_equal(motion, video + 100)


def test_the_first_frame_as_reference(rng):
    options = dataclasses.replace(OPTIONS, size=(8, 8), reference="first")
    assert {numbers(draw_example(Counter(), options, rng))[0] for _ in range(20)} == {0}


@pytest.mark.parametrize(("frames", "stride"), [(9, 4), (7, 3), (3, 1), (2, 1), (1, 1)])
def test_short_clips_take_the_largest_stride_that_fits(rng, frames, stride):
    _, video, _ = numbers(draw_example(Counter(frames), dataclasses.replace(OPTIONS, size=(8, 8)), rng))
    if frames >= 3:
        assert (np.diff(video) == stride).all()
    assert video.max() < frames and len(video) == 3


def test_flip_mirrors_pictures_and_swaps_sides():
    clip = puppet_clips("train", 1, (32, 32))[0]
    plain, flipped = (read_example(clip, 0, np.array([5, 9]), OPTIONS, flip=flip) for flip in (False, True))
    np.testing.assert_array_equal(flipped["video"], plain["video"][:, :, ::-1])
    np.testing.assert_array_equal(flipped["reference"], plain["reference"][:, ::-1])
    np.testing.assert_array_equal(
        read_labels(flipped["motion"])[0], FLIPPED[read_labels(plain["motion"])[0][:, :, ::-1]]
    )


def take(iterator, count=3):
    return [next(iterator) for _ in range(count)]


def assert_equal(a, b):
    for x, y in zip(a, b, strict=True):
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


def test_same_seed_same_batches_for_any_number_of_processes():
    clips = puppet_clips("train", 20, (32, 32))
    whole = take(batches(clips, OPTIONS, 4, seed=3))
    assert whole[0]["video"].shape == (4, 3, 32, 32, 3)
    halves = [take(batches(clips, OPTIONS, 4, seed=3, process=i, processes=2)) for i in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*halves, strict=True)]
    assert_equal(joined, whole)
    assert np.abs(take(batches(clips, OPTIONS, 4, seed=4))[0]["video"].astype(int) - whole[0]["video"]).max() > 0
    with pytest.raises(ValueError, match="divides over 3 processes"):
        batches(clips, OPTIONS, 4, seed=3, processes=3)


def test_any_position_can_be_taken_up():
    clips = puppet_clips("train", 5, (32, 32))
    whole = take(batches(clips, OPTIONS, 2, seed=0), 6)  # beyond the first round of five clips
    assert_equal(take(batches(clips, OPTIONS, 2, seed=0, start=6)), whole[3:])


def test_workers_do_not_change_the_batches():
    clips = puppet_clips("train", 6, (32, 32))
    iterator = batches(clips, OPTIONS, 2, seed=0, workers=2)
    assert_equal(take(iterator, 4), take(batches(clips, OPTIONS, 2, seed=0), 4))
    iterator.close()


def test_joint_training_mixes_kinds_of_batches():
    images = [Counter(1, f"image{i}") for i in range(5)]
    options = dataclasses.replace(OPTIONS, size=(8, 8), distance=0)
    joint = Joint(images=0.3, frames=0.3)
    drawn = take(batches([Counter()], options, 2, seed=0, images=images, joint=joint), 200)
    kinds = [("image" if key.startswith("image") else "clip", x["video"].shape[1]) for x in drawn for key in x["key"]]
    assert {("image", 1), ("clip", 1), ("clip", 3)} == set(kinds)
    for kind, share in ((("image", 1), 0.3), (("clip", 1), 0.3), (("clip", 3), 0.4)):
        assert kinds.count(kind) / len(kinds) == pytest.approx(share, abs=0.1)
    for x in drawn:
        if x["key"][0].startswith("image"):
            np.testing.assert_array_equal(x["reference"], x["video"][:, 0], "an image is its own reference")


def test_crops_are_shared_by_an_example(rng):
    class Gradient(Counter):
        def read(self, indices):
            picture = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, None, :, None], (len(indices), 8, 40, 3))
            return picture, picture

    options = dataclasses.replace(OPTIONS, size=(8, 8), crop="random")
    lefts = set()
    for _ in range(20):
        example = draw_example(Gradient(), options, rng)
        corners = {
            int(x)
            for x in (example["reference"][0, 0, 0], *example["video"][:, 0, 0, 0], *example["motion"][:, 0, 0, 0])
        }
        assert len(corners) == 1
        lefts |= corners
    assert len(lefts) > 5


def test_cached_latents_are_those_of_every_frame(tmp_path):
    shapes, clip = [], Counter(CHUNK + 3, "folder/counter")

    def encode(frames):
        shapes.append(frames.shape)
        return frames[:, ::4, ::4, :1]

    options = dataclasses.replace(OPTIONS, size=(8, 8))
    folder, facts = tmp_path / "latents", {"autoencoder": "a"}
    (latents,) = cache_latents([clip], encode, options, folder, facts)
    assert set(shapes) == {(CHUNK, 8, 8, 3)}, "programs are compiled for one shape"
    values, motion = latents.read(np.array([CHUNK + 2, 1]))
    assert values.shape == (2, 2, 2, 1) and values.dtype == np.float16
    np.testing.assert_allclose((values[:, 0, 0, 0] + 1) * 127.5, [CHUNK + 2, 1], atol=0.1)
    np.testing.assert_array_equal(motion, clip.read(np.array([CHUNK + 2, 1]))[1])
    assert {path.name for path in folder.iterdir()} == {"folder%2Fcounter.npy", "stamp.json"}

    shapes.clear()
    cache_latents([clip], encode, options, folder, facts)
    assert len(shapes) <= 1, "at most the shape is asked for again"
    with pytest.raises(InputError, match=r"expected latents of shape \(11, 2, 2, 2\).*found \(11, 2, 2, 1\)"):
        cache_latents([clip], lambda frames: jnp.zeros((CHUNK, 2, 2, 2)), options, folder, facts)
    for changed, encoder in (({"fingerprint": "others"}, "a"), ({}, "b")):
        with pytest.raises(InputError, match="has data" if changed else "has autoencoder 'a', expected 'b'"):
            other = dataclasses.replace(clip, **changed)
            cache_latents([other], encode, options, folder, {"autoencoder": encoder})


def test_examples_of_cached_latents_keep_their_size(tmp_path, rng):
    options = dataclasses.replace(OPTIONS, size=(8, 8))
    (latents,) = cache_latents([Counter()], lambda frames: frames[:, ::4, ::4, :1], options, tmp_path, {})
    example = draw_example(latents, options, rng)
    assert example["reference"].shape == (2, 2, 1) and example["video"].shape == (3, 2, 2, 1)
    assert example["motion"].shape == (3, 8, 8, 3)
    np.testing.assert_allclose(
        (example["video"][:, 0, 0, 0] + 1) * 127.5 + 100, example["motion"][:, 0, 0, 0], atol=0.1
    )
