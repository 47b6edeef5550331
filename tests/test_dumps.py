import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from rcnn_fixtures import load_set, read_rgb, shared_file

from mafx.densepose import draw_labels
from mafx.densepose.dumps import read_dump
from mafx.densepose.people import paint
from mafx.errors import InputError


def test_a_dump_of_the_published_code_is_its_render():
    ((name, people),) = read_dump(shared_file("tiny/dump.pkl"))
    assert name == "pictures/c.png"
    expected = load_set("tiny").expected
    assert [person.box for person in people] == list(map(tuple, expected["c/int_boxes_xywh"].tolist()))
    np.testing.assert_allclose([person.score for person in people], expected["c/scores"], rtol=1e-6)
    render = read_rgb(shared_file("tiny/renders/c.png"))
    np.testing.assert_array_equal(draw_labels(paint(people, render.shape[:2])), render)


# -- A dump opcode by opcode, as pickletools documents them: nothing of detectron2 is needed


CHART = b"cdensepose.structures.chart_result\nDensePoseChartResultWithConfidences\n)\x81"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(values):
    return b"(" + b"".join(b"J" + struct.pack("<i", x) for x in values) + b"t"


class Archive:
    """Collects the records of tensors."""

    def __init__(self):
        self.records = []

    def tensor(self, x):
        x = np.ascontiguousarray(x)
        kind = "LongStorage" if x.dtype == np.int64 else "FloatStorage"
        storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(str(len(self.records))) + text("cpu")
        self.records.append(x.tobytes())
        where = numbers([x.size])[1:] + b"QK\x00" + numbers(x.shape) + numbers([n // x.itemsize for n in x.strides])
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + where + b"\x89ccollections\nOrderedDict\n)RtR"

    def write(self, path, program):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
            for i, content in enumerate(self.records):
                archive.writestr(f"archive/data/{i}", content)
        return path


def picture(archive, boxes, scores, labels):
    charts = [CHART + b"}(" + text("labels") + archive.tensor(x) + text("uv") + b"Nub" for x in labels]
    people = b"](" + b"".join(charts) + b"e"
    boxes, scores = archive.tensor(np.float32(boxes).reshape(-1, 4)), archive.tensor(np.float32(scores))
    fields = text("scores") + scores + text("pred_boxes_XYXY") + boxes
    return (
        b"}(" + text("file_name") + text("a.png") + fields + (text("pred_densepose") + people if charts else b"") + b"u"
    )


def dump(path, *pictures):
    archive = Archive()
    return archive.write(path, b"](" + b"".join(picture(archive, *x) for x in pictures) + b"e")


LABELS = np.array([[0, 24], [3, 0]])


def test_pictures_with_and_without_people(tmp_path):
    boxes = [[1.5, 2.5, 3.75, 4.75], [5, 5, 5.5, 6]]
    path = dump(tmp_path / "a.pkl", (boxes, [0.75, 0.5], [LABELS, LABELS[:1, 1:]]), ([], [], []))
    (name, (first, second)), (_, nobody) = read_dump(path)
    assert (name, nobody) == ("a.png", [])
    assert (first.box, first.score, first.labels.tolist()) == ((1, 2, 2, 2), 0.75, LABELS.tolist())
    assert first.labels.dtype == np.uint8
    assert (second.box, second.labels.shape) == ((5, 5, 0, 1), (1, 0))  # its side is less than a pixel


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "match"),
    [
        ([[0, 0, 3, 2]], [0.5], [LABELS], r"labels of person 0 of picture 0 of shape \(2, 3\), found \(2, 2\)"),
        ([[0, 0, 2, 2]], [0.5], [LABELS + 1], "expected labels of 0 to 24 in person 0"),
        ([[0, 0, 2, 2]], [0.5], [LABELS - 1], "expected labels of 0 to 24 in person 0"),
        ([[0, 0, 2, 2]], [], [LABELS], r"scores of picture 0 of shape \(1,\), found \(0,\)"),
        ([[0, 0, 2, 2]], [0.5], [], r"boxes of picture 0 of shape \(0, 4\), found \(1, 4\)"),
        ([[0, 0, np.nan, 2]], [0.5], [LABELS], "was refused: cannot convert float NaN"),
    ],
)
def test_dumps_that_do_not_fit(tmp_path, boxes, scores, labels, match):
    path = dump(tmp_path / "a.pkl", (boxes, scores, labels))
    with pytest.raises(InputError, match=match):
        read_dump(path)


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (b"}", "expected a list of pictures, found dict"),
        (b"](K\x01e", "was refused"),
        (b"](}e", "was refused: 'file_name'"),
        (b"](" + CHART + b"e", "was refused"),
        (CHART + b"K\x01b", "was refused"),
        (b"ccollections\nCounter\n)\x81", "asks for collections.Counter"),
    ],
)
def test_other_contents_are_refused(tmp_path, program, match):
    with pytest.raises(InputError, match=match):
        read_dump(Archive().write(tmp_path / "a.pkl", program))


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_hostile_dumps_are_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = pickle.dumps([Hostile()], protocol=2)[2:-1]
    with pytest.raises(InputError, match="asks for (posix|nt).system"):
        read_dump(Archive().write(tmp_path / "a.pkl", program))
    assert not (tmp_path / "hacked").exists()


def test_pictures_that_share_tensors_do_not_take_all_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("MAFX_MAX_VIDEO_BYTES", "100")
    picture = ([[0, 0, 2, 2]], [0.5], [LABELS])
    with pytest.raises(InputError, match="at most 100 are read"):
        read_dump(dump(tmp_path / "a.pkl", picture, picture))
