import numpy as np
import pytest
from micro import example

from mafx import media
from mafx.densepose import draw_labels, read_labels
from mafx.densepose.agreement import agree, main, report
from mafx.errors import InputError


@pytest.fixture
def labels():
    return read_labels(example((64, 64), 6).motion)[0].astype(np.uint8)


def test_equal_motions_agree(labels):
    found = agree(labels, labels)
    assert found[:5] == (6, 1, 1, 1, 1)
    assert np.nanmin(found.of_parts) == 1
    assert found.changing[0] == found.changing[1] > 0
    assert agree(labels[:1], labels[:1]).changing == pytest.approx((np.nan, np.nan), nan_ok=True)


def test_figures_by_hand():
    a, b = np.zeros((2, 1, 4, 4), np.uint8)
    a[0, 0], b[0, 0] = (2, 2, 15, 0), (2, 1, 16, 20)  # equal, the other half of a part, the other side, missing
    found = agree(a, b)
    assert (found.equal, found.person, found.labels, found.parts) == (13 / 16, 3 / 4, 1 / 4, 2 / 4)
    assert found.of_parts[1] == 1 and found.of_parts[10] == 0 and np.isnan(found.of_parts[14])


def test_nobody_has_no_figures():
    found = agree(*np.zeros((2, 3, 4, 4), np.uint8))
    assert found.equal == 1 and np.isnan(found[2:5]).all()
    assert "nan" not in report(found)


def test_motions_of_other_lengths_and_sizes_are_refused(labels):
    with pytest.raises(InputError, match="found 64x64 and nothing at frame 5"):
        agree(labels, labels[:5])
    with pytest.raises(InputError, match="found 64x64 and 32x64 at frame 0"):
        agree(labels, labels[:, :32])


def test_the_command_compares_files(tmp_path, labels, capsys):
    media.write_video(tmp_path / "a.mkv", draw_labels(labels), 10)
    media.write_video(tmp_path / "b.mp4", draw_labels(labels), 10)
    main([str(tmp_path / "a.mkv"), str(tmp_path / "b.mp4")])
    table = capsys.readouterr().out
    assert "6 frames" in table and "head, intersection over union" in table
    share = float(next(line for line in table.splitlines() if "pixels with equal" in line).split("|")[2])
    assert 0.9 < share < 1
