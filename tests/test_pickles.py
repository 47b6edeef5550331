import io
import pickle

import pytest

from mafx.pretrained import pickles
from mafx.pretrained.pickles import NEW_OBJECTS, OPCODES, RestrictedUnpickler, scan_pickle


class Allowed:
    pass


def test_only_allowed_names_are_looked_up():
    program = pickle.dumps({"a": Allowed}, protocol=2)
    names = {(Allowed.__module__, "Allowed"): int}
    assert RestrictedUnpickler(io.BytesIO(program), names).load() == {"a": int}
    with pytest.raises(pickle.UnpicklingError, match=r"asks for .*Allowed"):
        RestrictedUnpickler(io.BytesIO(program), {}).load()


def test_text_of_python_2_keeps_its_bytes():
    assert RestrictedUnpickler(io.BytesIO(b"U\x02\x80\xff."), {}).load() == "\x80\xff"


def test_objects_are_made_only_where_files_have_objects():
    program = pickle.dumps(Allowed(), protocol=2)
    with pytest.raises(pickle.UnpicklingError, match="operation NEWOBJ"):
        scan_pickle(program)
    scan_pickle(program, OPCODES | NEW_OBJECTS)


def test_open_files_are_scanned_as_bytes_are():
    scan_pickle(io.BytesIO(pickle.dumps({"a": (1, b"2", "3")}, protocol=4)))
    with pytest.raises(pickle.UnpicklingError, match="operation INT"):
        scan_pickle(io.BytesIO(b"\x80\x02I1\n."))


def test_the_number_of_operations_is_limited(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 100)
    scan_pickle(b"\x80\x02" + b"N0" * 40 + b"N.")
    with pytest.raises(pickle.UnpicklingError, match="more than 100 operations"):
        scan_pickle(b"\x80\x02" + b"N0" * 60 + b"N.")
