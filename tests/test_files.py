import dataclasses
import json
import os
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from mafx.commands import Parser
from mafx.errors import InputError, refusals
from mafx.files import (
    Measured,
    Range,
    check_finite,
    check_inside,
    check_name,
    check_regular,
    check_value,
    parse_json,
    read_array,
    read_arrays,
    read_json,
    read_json_lines,
)
from mafx.limits import JSON_BYTES, LIMITS, add_limit_flags, set_limits


@dataclasses.dataclass(frozen=True)
class Inner:
    width: Annotated[int, Range(1, 8)]
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    sides: tuple[int, int] = (1, 1)
    scores: dict[str, Measured] = dataclasses.field(default_factory=dict)
    rate: float | None = None
    names: list[str] = dataclasses.field(default_factory=list)


def test_json_becomes_what_was_asked_for(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"inner": {"width": 3, "more": 1}, "sides": [2, 3], "scores": {"a": NaN}, "rate": 2}')
    got = read_json(path, Outer)
    assert got.inner == Inner(3) and got.sides == (2, 3) and np.isnan(got.scores["a"]) and got.rate == 2.0
    assert read_json(path)["rate"] == 2
    path.write_text('{"a": 1}\n{"a": 2.5}\n')
    assert read_json_lines(path, dict[str, int | Measured]) == [{"a": 1}, {"a": 2.5}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not readable JSON"),
        (b"\xff\xfe{", "is not text"),
        ("[" * 100_000, "is not readable JSON"),
        ("[" * 40 + "]" * 40, "nested more than 32 deep"),
        ('{"inner": {"width": 1}, "inner": {"width": 2}}', "same name twice"),
        ('{"inner": {"width": 1}, "x": "\\ud800"}', "is not readable JSON"),
        ('{"inner": {"width": 1}, "x": 1' + "0" * 5000 + "}", "is not readable JSON"),
        ('{"inner": {"width": 1}, "x": 1' + "0" * 50 + "}", "64 bits"),
        ("[1, 2]", "expected a JSON object, found"),
        ("{}", "lacks the setting 'inner'"),
        ('{"inner": 3}', "inner: expected a JSON object, found 3"),
        ('{"inner": {"width": true}}', r"inner: width: expected a whole number"),
        ('{"inner": {"width": 9}}', r"expected a whole number \(1 to 8\), found 9"),
        ('{"inner": {"width": 1, "kind": "c"}}', "kind: expected one of a, b, found 'c'"),
        ('{"inner": {"width": 1}, "sides": [1, 2, 3]}', "sides: expected a list of 2 items"),
        ('{"inner": {"width": 1}, "rate": Infinity}', "rate: expected a number, found inf"),
        ('{"inner": {"width": 1}, "scores": {"a": "b"}}', "scores: 'a': expected a number, found 'b'"),
        ('{"inner": {"width": 1}, "names": [1]}', r"names\[0\]: expected text, found 1"),
    ],
)
def test_json_that_is_something_else_is_refused_with_its_name(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"x.json.*{message}") as caught:
        read_json(path, Outer)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_values_are_checked_where_they_are_not_of_a_file():
    assert check_value([1, 2], tuple[int, ...], "x") == (1, 2)
    assert parse_json(b'"a"', "x", Any) == "a"
    with pytest.raises(InputError, match="x: expected null or a whole number, found 'a'|x: expected a whole number"):
        check_value("a", int | None, "x")


def test_a_limit_is_said_and_can_be_raised(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": "x" * 100}))
    monkeypatch.setenv(JSON_BYTES.variable, "100")
    with pytest.raises(InputError, match="109 bytes.*at most 100.*--max_json_bytes 109.*MAFX_MAX_JSON_BYTES=109"):
        read_json(path)
    parser = Parser("x", None)
    add_limit_flags(parser)
    set_limits(parser.parse_args(["--max_json_bytes", "200"]))
    assert read_json(path)["a"] and JSON_BYTES.value == 200
    monkeypatch.setenv(JSON_BYTES.variable, "many")
    with pytest.raises(InputError, match="MAFX_MAX_JSON_BYTES, found 'many'"):
        read_json(path)
    assert len({limit.name for limit in LIMITS}) == len(LIMITS)


def test_only_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(InputError, match="expected a file, found a"):
            read_json(path)
    with pytest.raises(InputError, match="there is no file"):
        check_regular(tmp_path / "nothing")
    with pytest.raises(InputError, match="there is no file"):
        check_regular(tmp_path / "null\0")


def test_links_and_dots_do_not_lead_out_of_a_folder(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").touch()
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "inside" / "file").touch()
    check_inside(tmp_path / "inside" / "file", tmp_path / "inside")
    for name in ("link", "../secret"):
        with pytest.raises(InputError, match="leads out of"):
            check_inside(tmp_path / "inside" / name, tmp_path / "inside")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\nb", "a\0", "x" * 300, "a\ud800"])
def test_names_that_no_file_should_have(name):
    check_name("Clip 1, déjà\u202fvu", "x")
    with pytest.raises(InputError, match="x: expected a name"):
        check_name(name, "x")


def test_arrays_are_what_their_readers_expect(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.ones((2, 3), np.float16))
    np.testing.assert_array_equal(read_array(path, np.float16, (2, 3)), np.ones((2, 3)))
    whole = path.read_bytes()
    with pytest.raises(InputError, match=r"expected float16 \(2, 4\).*found float16 \(2, 3\)"):
        read_array(path, np.float16, (2, 4))
    for broken in (b"", whole[:50], whole[:-2], whole.replace(b"(2, 3)", b"(2,-3)"), b"\x80\x04N."):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"x.npy is not an array"):
            read_array(path, np.float16)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"x.npy is not an array"):
        read_array(path, np.float16)


def test_arrays_of_a_box_are_finite_numbers_and_not_too_many(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.zeros(10_000))
    assert read_arrays(path, 100_000)["a"].shape == (10_000,)
    with pytest.raises(InputError, match="at most 1000 bytes"):
        read_arrays(path, 1000)
    np.savez(path, a=np.array([np.nan]))
    with pytest.raises(InputError, match="a holds NaN or infinity"):
        read_arrays(path, 1000)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="does not hold arrays"):
        read_arrays(path, 1000)
    with pytest.raises(InputError, match="expected numbers, found <U1"):
        check_finite(np.array(["a"]), "x")


def test_what_libraries_raise_becomes_one_line():
    with pytest.raises(InputError, match=r"^x cannot be read: one two$"), refusals("x cannot be read"):
        raise RuntimeError("one\n  two")
    with pytest.raises(InputError, match=r"^x cannot be read: MemoryError$"), refusals("x cannot be read"):
        raise MemoryError
    with pytest.raises(InputError, match=r"^as it was$"), refusals("x cannot be read"):
        raise InputError("as it was")
