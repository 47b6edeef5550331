import numpy as np
from micro import example

from mafx.experiments.few_steps import STEPS, score, table, ways_with


def test_scores_of_the_truth_and_of_a_flat_picture():
    clip = example((32, 32), 3)
    truth = {"motion": clip.motion, "video": clip.video}
    assert score(clip.video, truth) == {"psnr_person": 100.0, "sharpness": 1.0}
    flat = score(np.full_like(clip.video, 128), truth)
    assert flat["psnr_person"] < 20 and flat["sharpness"] == 0


def test_the_table_has_a_row_for_each_way():
    rows = [
        way._asdict() | {"steps": n, "psnr_person": [20.0, 19, 21], "sharpness": [0.9, 0.8, 1.0], "frechet": 0.25}
        for way in ways_with(1.5) for n in STEPS
    ]  # fmt: skip
    lines = table(rows).splitlines()
    assert len(lines) == 2 + 3 * len(STEPS)
    assert "20.00 [19.00, 21.00]" in lines[2] and "0.2500" in lines[2]
    assert [line.split("|")[1:4] for line in lines[2 :: len(STEPS)]] == [
        [" before ", " ddim ", " 1 "],
        [" before ", " ddim ", " 1.5 "],
        [" after ", " consistency ", " 1 "],
    ]


def test_guidance_is_measured_where_it_was_folded_in():
    assert [(way.model, way.guidance) for way in ways_with(1.0)] == [("before", 1), ("after", 1)]
