"""The README and the pages of docs/: their commands and Python run, and their links and flags exist.

Every block of bash or Python is run in order, page by page, unless a comment stands on the line before it:

    <!-- not run: REASON -->
    <!-- in the test: OLD -> NEW; OLD -> NEW -->     it is run with these replacements, which make it small
"""

import configparser
import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK_COMPILATION
from micro import example
from PIL import Image

import mafx
from configs import puppets
from mafx import media
from mafx.data.clips import PuppetClip
from mafx.training.checkpoints import SCORE, Checkpoints
from mafx.training.config import default_config
from mafx.training.optimiser import make_optimiser
from mafx.training.runs import run_facts
from mafx.training.step import init_state

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN, REPLACED = "not run: ", "in the test: "
FLAG = re.compile(r"(?<![\w-])--([a-z][\w-]*(?:\.\w+)*)")


@dataclasses.dataclass(frozen=True)
class Block:
    page: Path
    line: int
    mark: str
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language in ("bash", "python") and not self.mark.startswith(NOT_RUN)

    @property
    def replacements(self) -> list[tuple[str, ...]]:
        if not self.mark.startswith(REPLACED):
            return []
        return [tuple(pair.split(" -> ")) for pair in self.mark.removeprefix(REPLACED).split("; ")]

    @property
    def small(self) -> str:
        return functools.reduce(lambda text, pair: text.replace(*pair), self.replacements, self.text)


@functools.cache
def blocks(page: Path) -> list[Block]:
    content = page.read_text("utf-8")
    return [
        Block(page, content.count("\n", 0, match.start(3)), match[1] or "", match[2], match[3])
        for match in BLOCK.finditer(content)
    ]


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# -- What is written


def test_blocks_say_their_language_and_why_they_are_not_run():
    for block in ALL_BLOCKS:
        assert block.language, f"{block.place}: a block without a language"
        if block.mark:
            assert re.match(rf"{NOT_RUN}\w.{{10}}|{REPLACED}\S", block.mark), f"{block.place}: {block.mark}"
        for pair in block.replacements:
            assert len(pair) == 2 and pair[0] in block.text, f"{block.place}: {pair} replaces nothing"


def test_fences_are_closed():
    for page in PAGES:
        fences = [line for line in page.read_text("utf-8").splitlines() if line.startswith("```")]
        assert len(fences) == 2 * len(blocks(page)), page


def test_the_readme_has_the_line_that_installs_and_tests():
    found = re.findall(r"^pip install .* && pytest.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert found == ['pip install -e ".[test]" && pytest']


def test_extras_exist():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    for block in ALL_BLOCKS:
        for name in re.findall(r'pip install -e "\.\[(\w+)\]"', block.text):
            assert name in settings["options.extras_require"], f"{block.place}: no extra {name}"


def anchors(page: Path) -> set[str]:
    """The names by which headings of a page can be linked to."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_and_pictures_exist(page):
    text = BLOCK.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.is_file(), f"{page}: there is no {target}"
        assert not anchor or anchor in anchors(there), f"{page}: {there} has no heading {anchor}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_named_files_exist(page):
    code = re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text("utf-8")))
    for name in (name for name in code if re.fullmatch(r"(mafx|tests|configs|docs)/[\w./]+\.\w+", name)):
        assert (ROOT / name).is_file(), f"{page}: there is no {name}"


# -- Flags


def commands(text: str) -> list[tuple[str, str]]:
    """(script or module with the word behind it, arguments) of every Python command in a block of bash."""
    joined = re.sub(r"\\\n", " ", re.sub(r"\s#.*", "", text))
    return re.findall(r"python (-m mafx[\w.]+(?: [\w/]+)?|(?:sample|train)\.py)([^\n\"&]*)", joined)


@functools.cache
def help_of(command: str) -> str:
    run = [sys.executable, *command.split(), "--help"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command} --help: {done.stderr}"
    return done.stdout


def config_fields() -> set[str]:
    """`config`, `config.lr`, `config.data`, `config.data.path`, ..."""
    names = {"config"}

    def walk(values, prefix):
        for name, value in values.items():
            names.add(f"{prefix}.{name}")
            if hasattr(value, "items"):
                walk(value, f"{prefix}.{name}")

    walk(default_config("temporal"), "config")
    return names


COMMANDS = sorted({name for block in ALL_BLOCKS if block.language == "bash" for name, _ in commands(block.text)})


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_in_blocks_exist(command):
    known = set(FLAG.findall(help_of(command))) | config_fields() - {"config"}
    for block in ALL_BLOCKS:
        for name, arguments in commands(block.small) if block.language == "bash" else ():
            unknown = set(FLAG.findall(arguments)) - known if name == command else set()
            assert not unknown, f"{block.place}: {command} has no --{', --'.join(sorted(unknown))}"


def test_flags_in_the_text_exist():
    known = {flag for command in COMMANDS for flag in FLAG.findall(help_of(command))} | config_fields()
    for page in PAGES:
        for code in re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text("utf-8"))):
            unknown = set(FLAG.findall(code)) - known
            assert not unknown, f"{page}: no command has --{', --'.join(sorted(unknown))}"


# -- Running


@pytest.fixture(scope="module")
def prepared(micro, tmp_path_factory):
    """What the pages take for granted: weights, a picture, a motion, clips, and two runs."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("sample.py", "train.py", "configs", "setup.cfg"):
        (folder / name).symlink_to(ROOT / name)
    mafx.save_pretrained(micro, folder / "WEIGHTS")
    drawn = example((32, 32), 4)
    Image.fromarray(drawn.reference).save(folder / "person.png")
    media.write_video(folder / "densepose.mp4", drawn.motion, 12)
    for i in range(2):
        write_clip(folder / "CLIPS" / f"clip{i}", PuppetClip(i, i, (64, 64)))
    for name in ("temporal", "other"):
        write_run(folder / "RUNS" / name)
    return folder


def write_clip(folder: Path, clip: PuppetClip, frames: int = 17) -> None:
    for kind, pictures in zip(("images", "densepose"), clip.read(np.arange(frames)), strict=True):
        (folder / kind).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / kind / f"{i:04d}.png")


def write_run(workdir: Path) -> None:
    """A work folder that holds the bundled model."""
    config = puppets.get_config("temporal")
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(config.to_json_best_effort())
    state = init_state(mafx.load_bundled().params, config.train_only, make_optimiser(config)[0], np.dtype("float32"))
    checkpoints = Checkpoints(workdir, run_facts(config, [], []))
    checkpoints.save(state, 0, config)
    checkpoints.rate(0, {SCORE: 20.0})
    checkpoints.close()


@pytest.fixture(scope="module")
def environment(tmp_path_factory, programs):
    """Environment variables: `python` is this one, `pip` has nothing to do, and the home folder has only programs."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "mafx").symlink_to(programs)  # where sample.py keeps them
    for name, line in (("python", f'exec {sys.executable} "$@"'), ("pip", "true")):
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "HOME": str(folder),
        "XLA_FLAGS": QUICK_COMPILATION,
    }


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.runs for block in blocks(page))], ids=page_name)
def test_blocks_run(page, prepared, environment, tmp_path):
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder, symlinks=True)
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    for block in (block for block in blocks(page) if block.runs):
        run = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        done = subprocess.run([*run, block.small], check=False, **options)
        assert done.returncode == 0, f"{block.place}\n{block.small}\n{done.stdout}{done.stderr}"
