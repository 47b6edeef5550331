"""Dumps of detectron2: what `apply_net.py dump` of its DensePose project writes, read without either."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mafx.commands import expand_home
from mafx.densepose import PARTS
from mafx.densepose.people import Person, whole_box
from mafx.errors import InputError
from mafx.limits import VIDEO_BYTES
from mafx.pretrained.torch_files import StoredTensor, TorchObject


class _Chart:
    """Stands for detectron2's result of a person. Only its labels are kept; its coordinates are not read."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.labels = state["labels"]


CLASSES = {("densepose.structures.chart_result", "DensePoseChartResultWithConfidences"): _Chart}


def read_dump(path: str | Path) -> list[tuple[str, list[Person]]]:
    """Read a dump.

    Args:
      path: A `.pkl`; `~` is the home folder.

    Returns:
      For each picture its name, as the file says, and its people, the surest first.

    Raises:
      InputError: The file is something else, is damaged, holds more than `mafx.limits` says, or could execute code.
    """
    dump = TorchObject(expand_home(Path(path)), CLASSES)
    with dump.refusals(), zipfile.ZipFile(dump.path) as archive:
        reader = _Reader(dump, archive)
        if not isinstance(dump.content, list):
            raise InputError(f"{path}: expected a list of pictures, found {type(dump.content).__name__}")
        return [reader.picture(entry, f"picture {i}") for i, entry in enumerate(dump.content)]


class _Reader:
    """Reads one picture after another, and counts the bytes: pictures may share tensors."""

    def __init__(self, dump: TorchObject, archive: zipfile.ZipFile):
        self._dump, self._archive = dump, archive
        self._bytes = 0

    def picture(self, entry: dict[str, Any], where: str) -> tuple[str, list[Person]]:
        name, charts = entry["file_name"], entry.get("pred_densepose", [])
        if not isinstance(name, str) or not isinstance(charts, list):
            raise InputError(f"{self._dump.path}: expected a name and a list of people in {where}")
        boxes = self._array(entry["pred_boxes_XYXY"], f"the boxes of {where}", (len(charts), 4))
        scores = self._array(entry["scores"], f"the scores of {where}", (len(charts),))
        people = []
        for i, (box, score, chart) in enumerate(zip(boxes, scores, charts, strict=True)):
            people.append(self._person(box, float(score), chart, f"person {i} of {where}"))
        return name, people

    def _person(self, box: np.ndarray, score: float, chart: _Chart, where: str) -> Person:
        x, y, width, height = whole_box(box)
        # Where a side is less than a pixel, the file has labels of one pixel nevertheless.
        labels = self._array(chart.labels, f"the labels of {where}", (max(height, 1), max(width, 1)))
        if labels.min() < 0 or labels.max() >= PARTS:
            raise InputError(f"{self._dump.path}: expected labels of 0 to {PARTS - 1} in {where}")
        return Person((x, y, width, height), labels[:height, :width].astype(np.uint8), score)

    def _array(self, tensor: StoredTensor, where: str, shape: tuple[int, ...]) -> np.ndarray:
        if not isinstance(tensor, StoredTensor) or tensor.shape != shape:
            found = tensor.shape if isinstance(tensor, StoredTensor) else type(tensor).__name__
            raise InputError(f"{self._dump.path}: expected {where} of shape {shape}, found {found}")
        self._dump.check(self._archive, where, tensor)
        self._bytes += tensor.storage.size * tensor.storage.dtype.itemsize
        VIDEO_BYTES.check(self._dump.path, self._bytes)
        return self._dump.values(self._archive, tensor)
