"""The house itself: what the project says about its own structure is true."""

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mafx

ROOT = Path(__file__).parent.parent
SOURCES = [path for path in sorted((ROOT / "mafx").rglob("*.py")) if path != ROOT / "mafx" / "__init__.py"]


def reading_order():
    """Modules without "mafx.", as the package's docstring lists them."""
    text = mafx.__doc__.split("Reading order", 1)[1].split("\n\n")[1]
    order = []
    for line in text.splitlines():
        package, colon, modules = line.strip().partition(": ")
        order += [f"{package}.{name}" for name in modules.split(", ")] if colon else package.split(", ")
    return order


def module_name(path):
    return ".".join(path.relative_to(ROOT / "mafx").with_suffix("").parts).removesuffix(".__init__")


def imported(path):
    """Modules of mafx that a file imports anywhere, as `reading_order` names them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mafx":
            package = (node.module or "").removeprefix("mafx").lstrip(".")
            for alias in node.names:
                inner = f"{package}.{alias.name}".lstrip(".")
                is_module = any(
                    (ROOT / "mafx" / inner.replace(".", "/")).with_suffix(end).exists() for end in (".py", "")
                )
                yield inner if is_module else package
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("mafx.") for alias in node.names if alias.name.startswith("mafx."))


def test_the_reading_order_has_every_module_once():
    order = reading_order()
    assert len(order) == len(set(order))
    empty = {module_name(path) for path in SOURCES if path.name == "__init__.py" and not path.read_text().strip()}
    assert set(order) == {module_name(path) for path in SOURCES} - empty


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_modules_import_only_from_those_before_them(path):
    order = reading_order()
    own = module_name(path)
    for name in imported(path):
        if name:  # "" is the package itself, which imports lazily
            assert order.index(name) < order.index(own), f"{own} imports {name}, which comes later"


def test_private_names_stay_in_their_modules():
    for path in [*SOURCES, *ROOT.glob("*.py"), *(ROOT / "configs").glob("*.py"), *(ROOT / "tests").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mafx"):
                private = [alias.name for alias in node.names if re.match(r"_[a-z]", alias.name)]
                assert not private, f"{path.name} imports {', '.join(private)}"


def test_no_conditional_expression_holds_another():
    for path in [*SOURCES, *ROOT.glob("*.py"), *(ROOT / "configs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.IfExp):
                inner = [x for part in (node.test, node.body, node.orelse) for x in ast.walk(part)]
                assert not any(isinstance(x, ast.IfExp) for x in inner), f"{path.name}:{node.lineno}"


def test_functions_fit_on_a_screen():
    for path in [*SOURCES, *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1 - (ast.get_docstring(node) or "").count("\n")
                assert lines <= 50, f"{path.name}: {node.name} has {lines} lines"


def test_public_names_are_what_the_package_says():
    for name in mafx.__all__:
        assert getattr(mafx, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'animates'"):
        mafx.animates  # noqa: B018


def seconds(*command):
    """The best of three, in multiples of what starting Python with numpy takes: machines differ."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
        times.append(time.perf_counter() - began)
    return min(times)


def test_importing_and_help_are_quick():
    """JAX alone takes a part of a second: the package is imported without it, and help without training's libraries."""
    jax = seconds("-c", "import jax")
    assert seconds("-c", "import mafx") < 0.6 * jax
    assert seconds("train.py", "--help") < jax
    assert seconds("sample.py", "--help") < 3 * jax
