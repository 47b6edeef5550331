"""Temporary files: whose they are, and that they go."""

import os
import time

import pytest

from mafx.errors import InputError
from mafx.web.folders import MAX_AGE, TemporaryFolder


@pytest.fixture
def folder(tmp_path):
    return TemporaryFolder(tmp_path / "page")


def write(path, content=b"content"):
    path.write_bytes(content)
    return path


def test_only_the_owner_reads_a_file(folder):
    file = write(folder.new("anna") / "a.mp4")
    assert folder.is_open(file, "anna") and not folder.is_open(file, "ben") and not folder.is_open(file, "")
    assert folder.check(file, "anna") == file
    with pytest.raises(InputError, match="upload it again"):
        folder.check(file, "ben")


def test_a_file_that_two_people_brought_belongs_to_both(folder):
    (folder.path / "digest").mkdir()
    file = write(folder.path / "digest" / "a.png")
    assert not folder.is_open(file, "anna")
    folder.claim(file, "anna")
    folder.claim(file, "ben")
    assert folder.is_open(file, "anna") and folder.is_open(file, "ben") and not folder.is_open(file, "carl")


def test_everybody_reads_what_is_public(folder):
    assert folder.is_open(write(folder.public / "puppet.png"), "")


def test_nothing_outside_is_open(folder, tmp_path):
    secret = write(tmp_path / "secret")
    own = folder.new("anna")
    (own / "link").symlink_to(secret)
    (own / "circle").symlink_to(own / "circle")
    outside = [secret, own / ".." / ".." / "secret", own / "link", own / "circle", "/etc/passwd", "", ".", "..", "\0"]
    outside += [folder.path, f"{folder.public}/../../secret", "public/x", f"{own}/../{'x' * 300}", "~/x"]
    for path in outside:
        assert not folder.is_open(path, "anna"), path


def test_files_go_after_an_hour_and_public_ones_stay(folder):
    old, new = write(folder.new("anna") / "old"), write(folder.new("anna") / "new")
    loose = write(folder.path / "loose")
    public = write(folder.public / "puppet.png")
    now = time.time()
    for path in (old.parent, old, loose, folder.public, public):
        os.utime(path, (now - 100, now - 100))
    assert folder.sweep(now + MAX_AGE - 101) == 0
    assert folder.sweep(now + MAX_AGE - 50) == 2
    assert not old.parent.exists() and not loose.exists()
    assert new.exists() and public.exists()
    assert not folder.is_open(old, "anna")


def test_a_file_that_is_used_stays_for_another_hour(folder):
    file = write(folder.new("anna") / "a")
    past = time.time() - MAX_AGE - 10
    for path in (file, file.parent):
        os.utime(path, (past, past))
    folder.check(file, "anna")
    assert folder.sweep() == 0 and file.exists()


def test_closing_removes_everything(folder):
    write(folder.new("anna") / "a")
    folder.close()
    assert not folder.path.exists()
