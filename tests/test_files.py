"""Files: whole or not there, on a full disk too; read back as they were; known by their sha256."""

import errno
import json
import math
import os
import resource
import shutil
import subprocess

import pytest
from conftest import load
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from posttrain import files

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(st.none() | st.booleans() | NUMBERS | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=6)


def test_file_is_written_whole_or_not_at_all(tmp_path):
    """What JSON cannot hold leaves the file as it was, and no other beside it."""
    path = tmp_path / "scores.json"
    files.write(path, [{"reward": 1.5, "text": "Käse 🧀"}])
    before = path.read_bytes()
    for bad in (math.nan, math.inf, object()):
        with pytest.raises((ValueError, TypeError)):
            files.write(path, [{"reward": 2.0}, {"reward": bad}])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


def test_json_is_readable_text(tmp_path):
    """UTF-8, indented, non-ASCII letters as they are; a text is written as it is."""
    files.write(tmp_path / "deep" / "a.json", [{"text": "Käse 🧀"}])
    text = (tmp_path / "deep" / "a.json").read_text(encoding="utf-8")
    assert "Käse 🧀" in text
    assert len(text.splitlines()) == 5
    assert files.read_json(tmp_path / "deep" / "a.json") == json.loads(text)
    files.write(tmp_path / "a.md", "| a |\n")
    assert (tmp_path / "a.md").read_text() == "| a |\n"


@examples(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=JSON)
def test_json_comes_back_as_it_was(tmp_path, data):
    """What is written is read back the same, numbers to the bit, and its fingerprint is that of what was written."""
    try:
        files.write(tmp_path / "a.json", data)
    except UnicodeEncodeError:  # half characters are no text
        return
    if isinstance(data, str):  # a text is no JSON
        return
    assert files.read_json(tmp_path / "a.json") == data
    assert files.fingerprint(files.read_json(tmp_path / "a.json")) == files.fingerprint(data)


@pytest.mark.parametrize("damage", ["", "{", '[{"id": "harmful-00"', "[" * 10_000, "\x00", "NaN,"])
def test_damaged_file_is_named(tmp_path, damage):
    """A JSON file that is not whole is named, with the way out."""
    (tmp_path / "scores.json").write_text(damage)
    with pytest.raises(ValueError, match=r"scores\.json is damaged.*FRESH = True"):
        files.read_json(tmp_path / "scores.json")


def test_data_of_another_kind_is_named(tmp_path):
    """What is wrong, and where in the file."""
    files.write(tmp_path / "a.json", {"a": [1, "x"]})
    with pytest.raises(ValueError, match=r"a\.json is damaged \(a\.1: Input should be a valid integer"):
        files.read_json(tmp_path / "a.json", dict[str, list[int]])


def test_sha256_of_a_folder(tmp_path):
    """It depends on names and contents, not on hidden files, which systems strew about, nor on where the folder is."""
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "x.json").write_text("1")
    (tmp_path / "a" / "y.json").write_text("2")
    before = files.sha256_of(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / ".DS_Store").write_bytes(b"x")
    assert files.sha256_of(tmp_path / "b") == before
    (tmp_path / "b" / "deep" / "x.json").rename(tmp_path / "b" / "x.json")
    assert files.sha256_of(tmp_path / "b") != before
    (tmp_path / "a" / "y.json").write_text("3")
    assert files.sha256_of(tmp_path / "a") != before


def test_what_other_names_share_is_not_emptied(tmp_path):
    """A hard-linked backup and what a link points to keep their contents when a folder is removed."""
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "copy").hardlink_to(tmp_path / "kept")
    (tmp_path / "other").write_text("other")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "other")
    files.remove(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert [(tmp_path / name).read_text() for name in ("kept", "other")] == ["kept", "other"]


def test_files_are_emptied_before_they_are_removed(tmp_path, monkeypatch):
    """Google Drive keeps what is deleted in its trash, and counts it."""
    folder = tmp_path / "unfinished" / "checkpoint-10"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(bytes(1000))
    remove, sizes = shutil.rmtree, []

    def watched(path, **options):
        sizes.extend(file.stat().st_size for file in path.rglob("*") if file.is_file())
        remove(path, **options)

    monkeypatch.setattr(files.shutil, "rmtree", watched)
    files.remove(tmp_path / "unfinished")
    assert sizes == [0]
    assert not (tmp_path / "unfinished").exists()
    (tmp_path / "a.json").write_text("1")
    files.remove(tmp_path / "a.json")
    files.remove(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


# ---- no room left

@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; skipped where none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk_leaves_the_earlier_file(small_disk):
    """A file that does not fit: the message names the folder and what to do, the earlier file stays, no other does."""
    path = small_disk / "scores.json"
    files.write(path, [1])
    with pytest.raises(OSError, match=r"no room left to write into .*small\. .*make room.*run again") as error:
        files.write(path, ["x" * 2**21])
    assert error.value.__cause__.errno == errno.ENOSPC
    assert load(path) == [1]
    assert [file.name for file in small_disk.iterdir()] == ["scores.json"]


def test_full_disk_under_a_size_limit(tmp_path):
    """The same with a limit on the size of files, which needs no right to mount."""
    path = tmp_path / "scores.json"
    files.write(path, [1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(OSError, match="no room left"):
            files.write(path, ["x" * 2**20])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load(path) == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]
