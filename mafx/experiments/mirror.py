"""What a mirror would gain from seeing the last frames, and how well it imitates, on held-out puppets (docs/mirror.md).

    python -m mafx.experiments.mirror --out mirror

The bundled model animates in one step. This writes two tables (.md), their figures (.json), and a picture (.png).
Landmark networks are fetched where they are missing.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

import mafx
from mafx.benchmarks.quality import Example, check_folder, mean_psnr, read_examples, write_figures
from mafx.commands import Parser, parse_count, run_command
from mafx.data.clips import TEST_SEEDS, PuppetClip
from mafx.densepose import draw_labels, read_labels
from mafx.densepose.agreement import agree
from mafx.densepose.landmarks import PoseTracker
from mafx.densepose.pose_files import fetch_pose_files
from mafx.densepose.pose_networks import PoseNetworks
from mafx.media import enlarge, fit, to_uint8
from mafx.metrics import LARGEST, difference_error, psnr
from mafx.model import Model
from mafx.program import Appearance, Program, plan
from mafx.puppets import Identity, Movement
from mafx.settings import Settings
from mafx.tables import markdown_table
from mafx.web.imitation import PuppetImitator

NAME = "python -m mafx.experiments.mirror"
Row = dict[str, Any]

WINDOWS = (1, 2, 4, 8, 16)
WHOLE = "the whole video, 16 at a time"
FRAMES = 24  # of each puppet
CAMERA = 240, 320
FRONT = np.pi / 3  # yaw up to which a person counts as facing the camera
MOMENTS, ZOOM = 6, 2  # of the picture


# -- Windows


def compare_windows(model: Model, examples: Sequence[Example], rounds: int) -> list[Row]:
    """Show the newest frame of windows of several lengths; score what is shown, and time it.

    Args:
      model: The model.
      examples: `max(WINDOWS) - 1` frames that come before, then those that are shown.
      rounds: How often each window is timed, in turns.

    Returns: A row for each of WINDOWS, and one for WHOLE, which has no time.
    """
    programs = [plan(model, settings(window), frames=window) for window in WINDOWS]
    rows: list[Row] = []
    for window, program in zip(WINDOWS, tqdm(programs, unit="window"), strict=True):
        videos = [newest_frames(program, example) for example in examples]
        rows.append({"window": f"{window}"} | mean_scores(videos, examples))
    for row, seconds in zip(rows, time_windows(programs, examples[0], rounds), strict=True):
        row["seconds"] = seconds
    whole = plan(model, settings(max(WINDOWS)), frames=FRAMES)
    return [*rows, {"window": WHOLE} | mean_scores([animate_whole(whole, x) for x in examples], examples)]


def settings(window: int) -> Settings:
    return Settings(steps=1, guidance_scale=1.0, window=window, overlap=min(4, window - 1))


def newest_frames(program: Program, example: Example) -> np.ndarray:
    """What a mirror shows that sees the last frames, uint8 `FRAMES H W 3`."""
    appearance, motion = program.see(example["reference"]), example["motion"]
    ends = range(len(motion) - FRAMES + 1, len(motion) + 1)
    return np.stack([to_uint8(program.move(appearance, motion[end - program.frames : end])[-1]) for end in ends])


def animate_whole(program: Program, example: Example) -> np.ndarray:
    return to_uint8(program.run(example["reference"], example["motion"][-FRAMES:], progress=False).video)


def mean_scores(videos: Sequence[np.ndarray], examples: Sequence[Example]) -> Row:
    """Means over videos: PSNR in dB, and by how much the changes from frame to frame are wrong, of LARGEST."""
    scores = []
    for video, example in zip(videos, examples, strict=True):
        truth, person = example["video"][-FRAMES:], read_labels(example["motion"])[0][-FRAMES:] > 0
        wrong = LARGEST * difference_error(video, truth).mean()
        scores.append((mean_psnr(video, truth), mean_psnr(video, truth, person), wrong))
    return dict(zip(("psnr", "psnr_person", "wrong_change"), np.mean(scores, axis=0).tolist(), strict=True))


def time_windows(programs: Sequence[Program], example: Example, rounds: int) -> list[float]:
    """Median seconds of each window. They take turns, so that other work on the machine meets them all."""
    seen = [(program, program.see(example["reference"])) for program in programs]
    seconds = [[move_seconds(program, appearance, example) for program, appearance in seen] for _ in range(rounds)]
    return np.median(seconds, axis=0).tolist()


def move_seconds(program: Program, appearance: Appearance, example: Example) -> float:
    began = time.perf_counter()
    program.move(appearance, example["motion"][: program.frames])
    return time.perf_counter() - began


# -- Imitation


class Imitated(NamedTuple):
    """One frame before a mirror, and what the mirror makes of it.

    Attributes:
      yaw: Of the person, in radians; 0 faces the camera.
      frame: What the camera sees, uint8 `h w 3`.
      truth: The puppet in the same pose, uint8 `H W 3`.
      motion: Its render.
      imitated: The render that the mirror draws.
      shown: What the mirror shows.
      best: What it would show of the true render.
    """

    yaw: float
    frame: np.ndarray
    truth: np.ndarray
    motion: np.ndarray
    imitated: np.ndarray
    shown: np.ndarray
    best: np.ndarray


def imitate(program: Program, networks: PoseNetworks, driver: PuppetClip, puppet: PuppetClip) -> list[Imitated]:
    """Let a drawn person before a camera move a puppet, frame by frame; frames in which nobody is found are left out.

    Args:
      program: Of one frame.
      networks: Find landmarks.
      driver: The person.
      puppet: The truth: another one in the same movement.
    """
    imitator = PuppetImitator(Identity.from_seed(puppet.identity), program.size)
    appearance, movement = program.see(imitator.picture), Movement.from_seed(driver.movement)
    fps = float(driver.fps)
    follow = PoseTracker(networks, fps=fps)
    moments = 1 + np.arange(FRAMES)  # at moment 0 everybody stands
    found = []
    for moment, frame, truth, motion in zip(moments, driver.read(moments)[0], *puppet.read(moments), strict=True):
        if poses := follow(frame):
            imitated = draw_labels(imitator(poses[0]))
            shown, best = (to_uint8(program.move(appearance, x[None])[0]) for x in (imitated, motion))
            yaw = movement.pose_at(moment / fps)["yaw"]
            found.append(Imitated(yaw, frame, truth, motion, imitated, shown, best))
    return found


def imitation_row(x: Imitated) -> Row:
    return {
        "front": bool(np.cos(x.yaw) >= np.cos(FRONT)),
        "outline": agree(*(read_labels(render[None])[0] for render in (x.imitated, x.motion))).person,
        "psnr": psnr(x.shown, x.truth),
        "psnr_true_labels": psnr(x.best, x.truth),
    }


def imitate_all(model: Model, networks: PoseNetworks, count: int) -> list[list[Imitated]]:
    """So many drivers, each with a puppet that is nobody's driver."""
    program = plan(model, settings(1), frames=1)
    return [
        imitate(program, networks, PuppetClip(i, i, CAMERA), PuppetClip(i + count, i, program.size))
        for i in tqdm(range(TEST_SEEDS, TEST_SEEDS + count), unit="person")
    ]


def draw(found: Sequence[Imitated]) -> np.ndarray:
    """Columns of moments: the camera's person, the labels, what is shown, and the truth."""
    chosen = [found[i] for i in np.linspace(0, len(found) - 1, MOMENTS).round().astype(int)]
    columns = [np.concatenate([fit(x.frame, x.shown.shape[:2]), x.imitated, x.shown, x.truth]) for x in chosen]
    return enlarge(np.concatenate(columns, axis=1), ZOOM)


# -- The command


def window_table(rows: Sequence[Row]) -> str:
    header = ("window", "PSNR", "PSNR, person", "wrong change from frame to frame", "time of the networks")
    alone = rows[0]["seconds"]
    lines = []
    for row in rows:
        scores = (f"{row[name]:.2f}" for name in ("psnr", "psnr_person", "wrong_change"))
        lines.append((row["window"], *scores, f"{row['seconds'] / alone:.1f}" if "seconds" in row else ""))
    return markdown_table(header, lines)


def imitation_table(rows: Sequence[Row], count: int) -> str:
    """A table by where people look; `count` frames were shown to the mirror."""
    header = ("", "frames", "person's outline (IoU)", "PSNR", "PSNR, with true labels")
    lines = []
    for title, front in (("within 60 degrees of the front", True), ("turned further", False)):
        chosen = [row for row in rows if row["front"] == front]
        means = (np.mean([row[name] for row in chosen]) for name in ("outline", "psnr", "psnr_true_labels"))
        lines.append((title, len(chosen), *(f"{mean:.2f}" for mean in means)))
    return markdown_table(header, lines) + f"\nNobody was found in {count - len(rows)} of {count} frames.\n"


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="Name of the three files, without an ending.")
    add("--workdir", type=Path, help="Run of another model of puppets (default: the bundled model).")
    add("--clips", type=parse_count, default=16, help="Number of held-out puppets (default 16).")
    add("--rounds", type=parse_count, default=60, help="How often each window is timed (default 60).")
    return parser


def main(args: argparse.Namespace) -> None:
    check_folder(args.out)
    model = mafx.load_run(args.workdir) if args.workdir else mafx.load_bundled()
    networks = PoseNetworks(fetch_pose_files())
    examples = read_examples(args.clips, model.size, max(WINDOWS) - 1 + FRAMES)
    windows = compare_windows(model, examples, args.rounds)
    imitated = imitate_all(model, networks, args.clips)
    rows = [imitation_row(x) for found in imitated for x in found]
    Image.fromarray(draw(imitated[0])).save(args.out.with_suffix(".png"))
    lines = window_table(windows) + "\n" + imitation_table(rows, args.clips * FRAMES)
    write_figures(args.out, {"windows": windows, "imitation": rows}, lines)


if __name__ == "__main__":
    sys.exit(run_command(NAME, main, make_parser().parse_args()))
