"""The page of a run: `page.html` in its work folder, one file that shows all and asks nobody for anything.

Everything in it is read from the work folder, so that it is right after a stop: curves from `metrics.jsonl`, which
forgets the steps that are taken again, and animations from the videos of the steps whose scores stand there.
"""

import base64
import functools
import html
import json
import math
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jaxlib
import ml_collections
import numpy as np

import mafx
from mafx import media
from mafx.errors import refusals
from mafx.files import Measured, read_json_lines
from mafx.stamps import write_whole
from mafx.training.charts import Curve, draw, number
from mafx.training.checkpoints import SCORE
from mafx.training.config import default_config, flat_config
from mafx.training.watch import FPS, METRICS_FILE, video_path

PAGE_FILE = "page.html"
MOST_SHOWN = 6  # animations: the first, the last, and some between
MOST_BYTES = 400_000  # of an animation; a larger one is made smaller
SIDE = 640  # rows and columns of an animation that was made smaller, at most
QUALITY = 28  # its constant rate factor
LAST_READINGS = 5  # whose median is the speed

# Charts: a heading, what it shows in a sentence, and names of metrics. What is in none has a chart of its own.
CHARTS = (
    ("Loss", "mean since the reading before", ("loss",)),
    ("Held-out PSNR", "dB, whole frames", (SCORE, "copying_psnr")),
    ("Held-out PSNR, person", "dB, within the person", (f"{SCORE}_person", "copying_psnr_person")),
    ("Loss by diffusion time", "quarters, t0 has the least noise", ("loss_t0", "loss_t1", "loss_t2", "loss_t3")),
    ("Gradient norm", "before clipping", ("gradient_norm",)),
    ("Learning rate", "as scheduled", ("learning_rate",)),
    ("Speed", "examples per second", ("examples_per_second",)),
    ("Memory", "largest so far, GiB", ("memory_gib",)),
)
STEADY = frozenset({"learning_rate", "loss_scale", "memory_gib", "parameter_norm"})  # need no smoothing
LABELS = {
    SCORE: "animated",
    f"{SCORE}_person": "animated",
    "copying_psnr": "copying the reference",
    "copying_psnr_person": "copying the reference",
}


class Report(NamedTuple):
    """What a page shows.

    Attributes:
      name: Of the run.
      done: Steps that are taken.
      lines: Of `metrics.jsonl`: values by names, with "step".
      videos: MP4 files by their steps.
      config: Values by names with dots.
      default: The same fields as they are by default.
      command: What started the run.
      versions: Of software and devices, by names.
      written: When, in words.
    """

    name: str
    done: int
    lines: Sequence[Mapping[str, float]]
    videos: Mapping[int, bytes]
    config: Mapping[str, Any]
    default: Mapping[str, Any]
    command: str
    versions: Mapping[str, str]
    written: str


# -- From the work folder


def write_page(workdir: Path, config: ml_collections.ConfigDict, done: int) -> None:
    """Write the page of a run. It is complete or what it was before.

    Args:
      workdir: Work folder of the run.
      config: Of the run.
      done: Steps that are taken.

    Raises:
      InputError: The page cannot be made or written, for whatever reason; a training goes on without it.
    """
    with refusals(f"{workdir / PAGE_FILE} was not written"):
        write_whole(workdir / PAGE_FILE, render(read_report(workdir, config, done)))


def read_report(workdir: Path, config: ml_collections.ConfigDict, done: int) -> Report:
    """What the page of a run shows, from its work folder."""
    path = workdir / METRICS_FILE
    lines = read_json_lines(path, dict[str, int | Measured]) if path.exists() else []
    scored = [int(line["step"]) for line in lines if SCORE in line]
    chosen = [step for step in spread(scored) if video_path(workdir, step).exists()]
    paths = {step: video_path(workdir, step) for step in chosen}
    videos = {step: small_video(path, path.stat().st_mtime_ns) for step, path in paths.items()}
    return Report(
        workdir.absolute().name,
        done,
        lines,
        videos,
        fields(config),
        fields(default_config(config.stage)),
        f"python {shlex.join(sys.argv)}",
        _versions(),
        time.strftime("%Y-%m-%d %H:%M %Z"),
    )


def fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Values of JSON by names with dots."""
    is_tree = ml_collections.ConfigDict
    return {name: x.to_dict() if isinstance(x, is_tree) else x for name, x in flat_config(config).items()}


def spread(steps: Sequence[int]) -> list[int]:
    """At most `MOST_SHOWN` of the steps, evenly spread, with the first and the last."""
    places = np.linspace(0, len(steps) - 1, min(MOST_SHOWN, len(steps))).round().astype(int)
    return [steps[i] for i in places]


@functools.lru_cache(maxsize=2 * MOST_SHOWN)
def small_video(path: Path, changed: int) -> bytes:
    """An MP4 of at most about `MOST_BYTES`; `changed` is when the file was."""
    del changed  # is in the key of what is remembered
    if path.stat().st_size <= MOST_BYTES:
        return path.read_bytes()
    video, _ = media.read_video(path, prepare=_shrink)
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / path.name
        media.write_video(small, video, FPS, QUALITY)
        return small.read_bytes()


def _shrink(frame: np.ndarray) -> np.ndarray:
    scale = min(1, SIDE / max(frame.shape[:2]))
    h, w = (max(1, round(scale * side)) for side in frame.shape[:2])
    return media.resize(frame, (h, w))


def _versions() -> dict[str, str]:
    device = jax.devices()[0]
    return {
        "mafx": mafx.__version__,
        "jax": f"{jax.__version__} (jaxlib {jaxlib.__version__})",
        "flax": flax.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "processes": str(jax.process_count()),
    }


# -- The page


def render(report: Report) -> str:
    """The page: HTML in one string, which names no other file."""
    name, stage, steps = html.escape(report.name), html.escape(str(report.config["stage"])), report.config["steps"]
    share = 100 * min(1, report.done / steps)
    body = "\n".join(
        (
            f"<header><h1>{name}</h1><p>The {stage} stage on {_text(report.config['data.name'])}, "
            f"written {html.escape(report.written)}.</p>",
            f'<div class="bar" role="img" aria-label="{share:.0f} % done"><i style="width:{share:.1f}%"></i></div>',
            f"{_tiles(report)}</header>",
            f'<section><h2>Curves</h2><div class="charts">{_charts(report)}</div></section>',
            f"<section><h2>Held-out clips</h2>{_animations(report)}</section>",
            f"<section><h2>Config</h2>{_config(report)}</section>",
            f"<section><h2>Made by</h2><pre>{html.escape(report.command)}</pre>",
            f"{_table(report.versions.items())}</section>",
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{name}: step {report.done:,}</title>\n<style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(value if value and isinstance(value, str) else json.dumps(value, default=str))


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = (f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def _column(report: Report, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric."""
    found = [(int(line["step"]), float(line[name])) for line in report.lines if name in line]
    return [step for step, _ in found], [value for _, value in found]


def _tiles(report: Report) -> str:
    """The numbers that are looked at first."""
    steps = report.config["steps"]
    tiles = [("step", f"{report.done:,} of {steps:,}")]
    if speeds := [x for x in _column(report, "examples_per_second")[1][-LAST_READINGS:] if x > 0 and math.isfinite(x)]:
        speed = statistics.median(speeds)
        seconds = report.config["batch"] * report.config["accumulate"] / speed
        left = duration((steps - report.done) * seconds) if report.done < steps else "done"
        tiles += [("time left", left), ("examples/s", number(speed)), ("ms per step", number(1000 * seconds))]
    for label, name in (("loss", "loss"), ("memory, GiB", "memory_gib")):
        tiles += [(label, number(x)) for x in _column(report, name)[1][-1:]]
    for ours, copying in zip(_column(report, SCORE)[1][-1:], _column(report, "copying_psnr")[1][-1:], strict=False):
        tiles += [("held-out PSNR, dB", number(ours)), ("above copying, dB", f"{ours - copying:+.2f}")]
    return f"<dl>{''.join(f'<div><dt>{label}</dt><dd>{value}</dd></div>' for label, value in tiles)}</dl>"


def duration(seconds: float) -> str:
    """Seconds in words of two units: 3 h 20 min."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _charts(report: Report) -> str:
    names = list(dict.fromkeys(name for line in report.lines for name in line if name != "step"))
    listed = {name for _, _, group in CHARTS for name in group}
    others = [(name.replace("_", " ").capitalize(), "", (name,)) for name in names if name not in listed]
    return "".join(
        _chart(report, heading, said, [name for name in group if name in names])
        for heading, said, group in (*CHARTS, *others)
        if heading == CHARTS[0][0] or any(name in names for name in group)
    )


def _chart(report: Report, heading: str, said: str, names: Sequence[str]) -> str:
    curves = []
    for name in names:
        label, copies = LABELS.get(name, name.replace("_", " ")), name.startswith("copying")
        smooth = name not in STEADY and name not in LABELS
        curves.append(Curve(label, *_column(report, name), smooth=smooth, dashed=copies))
    keys = "".join(f'<span class="s{i}">{html.escape(curve.name)}</span>' for i, curve in enumerate(curves))
    legend = f'<p class="legend">{keys}</p>' if len(curves) > 1 else ""
    note = f" <small>{html.escape(said)}</small>" if said else ""
    chart = draw(curves, report.done)
    return f"<figure><h3>{html.escape(heading)}{note}</h3>{chart}{legend}<output></output></figure>"


def _animations(report: Report) -> str:
    if not report.videos:
        return '<p class="none">No clip was animated yet.</p>'
    scores = dict(zip(*_column(report, SCORE), strict=True))
    figures = []
    for step, video in sorted(report.videos.items(), reverse=True):
        source = f"data:video/mp4;base64,{base64.b64encode(video).decode()}"
        caption = f"step {step:,}, {scores[step]:.2f} dB" if step in scores else f"step {step:,}"
        tag = f'<video src="{source}" autoplay loop muted playsinline></video>'
        figures.append(f"<figure>{tag}<figcaption>{caption}</figcaption></figure>")
    said = "<p>A row is a clip: reference, motion, result, truth. The newest step comes first.</p>"
    return f'{said}<div class="clips">{"".join(figures)}</div>'


def _config(report: Report) -> str:
    """Its fields; those that are not the default come first, and say what the default is."""
    plain = {name: json.dumps(value, default=str) for name, value in report.default.items()}
    changed = [name for name, x in report.config.items() if json.dumps(x, default=str) != plain.get(name)]
    rows = []
    for name in changed:
        value = f"<b>{_text(report.config[name])}</b> <small>default {_text(report.default.get(name, 'none'))}</small>"
        rows.append(f'<tr class="changed"><th>{_text(name)}</th><td>{value}</td></tr>')
    same = _table((name, x) for name, x in report.config.items() if name not in changed)
    said = f"<p>{len(changed)} fields differ from the defaults of mafx/training/config.py.</p>"
    rest = f"<details><summary>{len(report.config) - len(changed)} fields have their default</summary>{same}</details>"
    return f"{said}<table>{''.join(rows)}</table>{rest}"


STYLE = """
:root{color-scheme:light dark;--back:#fbfbfa;--card:#fff;--ink:#1d2126;--pale:#676e77;--line:#e3e5e8;
--s0:#2463c9;--s1:#c2570c;--s2:#16825d;--s3:#a13a8f}
@media (prefers-color-scheme:dark){:root{--back:#15181c;--card:#1d2126;--ink:#e8eaed;--pale:#9aa2ac;--line:#333a42;
--s0:#7fb0ff;--s1:#ffa866;--s2:#5fd3a6;--s3:#e59ad7}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem;max-width:1200px;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{margin:0;font-size:1.6rem;overflow-wrap:anywhere}h2{margin:2rem 0 .6rem;font-size:1.15rem}
h3{margin:0 0 .3rem;font-size:.9rem}p{margin:.2rem 0 .8rem}small,p,dt,figcaption,output{color:var(--pale)}
small{font-weight:400}
.bar{height:6px;border-radius:3px;background:var(--line);overflow:hidden}
.bar i{display:block;height:100%;background:var(--s0)}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.2rem,1fr));gap:.6rem;margin:1rem 0}
dl div,figure{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.6rem .8rem}
dt{font-size:.8rem}dd{margin:0;font-size:1.1rem;font-weight:600;font-variant-numeric:tabular-nums}
figure{margin:0;min-width:0}
.charts,.clips{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:.8rem}
svg{display:block;width:100%;height:auto}svg text{font-size:11px;fill:var(--pale)}
svg path{fill:none;stroke-linecap:round;stroke-linejoin:round}.grid{stroke:var(--line)}
.line,.dashed{stroke-width:2}.dots{stroke-width:6}.dashed{stroke-dasharray:5 5}.raw{stroke-width:1;opacity:.35}
rect{fill:transparent}rect:hover{fill:var(--pale);fill-opacity:.18}
.s0{stroke:var(--s0)}.s1{stroke:var(--s1)}.s2{stroke:var(--s2)}.s3{stroke:var(--s3)}
.legend{margin:0;font-size:.8rem}.legend span{margin-right:1rem}.legend span::before{content:"";display:inline-block;
width:.9rem;height:3px;margin-right:.35rem;vertical-align:middle;background:currentColor}
.legend .s0::before{color:var(--s0)}.legend .s1::before{color:var(--s1)}
.legend .s2::before{color:var(--s2)}.legend .s3::before{color:var(--s3)}
output{display:block;min-height:1.3rem;font-size:.8rem}
video{display:block;width:100%;image-rendering:pixelated;border-radius:4px}
table{width:100%;border-collapse:collapse;font-size:.87rem}
th,td{padding:.25rem .5rem .25rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;
overflow-wrap:anywhere}th{width:38%;font-weight:400;color:var(--pale)}.changed th{color:var(--ink)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:.7rem}summary{cursor:pointer;margin:.8rem 0}
"""

# A finger has no tooltip: what a strip's title says is written below its chart.
SCRIPT = """
for (const figure of document.querySelectorAll(".charts figure"))
  figure.addEventListener("pointermove", event => {
    const title = event.target.querySelector?.("title");
    if (event.target.tagName === "rect") figure.querySelector("output").textContent = title.textContent;
  });
"""
