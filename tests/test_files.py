"""Files are complete or missing, even on a full disk, and are recognised by their sha256."""

import errno
import json
import math
import os
import resource
import shutil
import stat
import subprocess

import pytest
from conftest import ROOT, load
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from posttrain import files

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def names_in(folder):
    """List the names of everything in a folder, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


# ---- whole or not there


def test_what_json_cannot_hold_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "scores.json"
    files.write(path, [{"reward": 1.5, "text": "Käse 🧀"}])
    before = path.read_bytes()
    for value in (math.nan, math.inf, object(), "\ud800"):
        with pytest.raises((ValueError, TypeError)):
            files.write(path, [{"reward": 2.0}, {"reward": value}])
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["scores.json"]


def test_a_folder_is_named_once_it_is_filled_and_vanishes_where_that_failed(tmp_path):
    path = tmp_path / "deep" / "sft"
    with pytest.raises(RuntimeError, match="interrupted"), files.written_whole(path) as temporary:
        temporary.mkdir()
        (temporary / "weights").write_bytes(b"x")
        assert not path.exists()
        raise RuntimeError("interrupted")
    assert names_in(tmp_path / "deep") == []
    with files.written_whole(path) as temporary:
        temporary.mkdir()
    assert names_in(tmp_path / "deep") == ["sft"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_by_hand_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(error), files.written_whole(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise error
    assert names_in(tmp_path) == []


def test_what_a_killed_process_left_half_written_is_cleared(tmp_path):
    half = tmp_path / "sft.tmp"
    half.mkdir()
    (half / "half").write_text("half")
    with files.written_whole(tmp_path / "sft") as temporary:
        assert not temporary.exists()
        temporary.mkdir()
    assert names_in(tmp_path) == ["sft"]
    assert names_in(tmp_path / "sft") == []


def test_files_work_under_a_strict_umask(tmp_path):
    before = os.umask(0o077)
    try:
        files.write(tmp_path / "deep" / "a.json", [1])
        files.write(tmp_path / "deep" / "a.json", [2])
        assert files.read_json(tmp_path / "deep" / "a.json") == [2]
        mode = stat.S_IMODE((tmp_path / "deep" / "a.json").stat().st_mode)
        assert mode == 0o600
        files.remove(tmp_path / "deep")
    finally:
        os.umask(before)
    assert names_in(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match=tmp_path.name):
            files.write(tmp_path / "a.json", [1])
    finally:
        tmp_path.chmod(0o700)


# ---- JSON


def test_json_is_readable_text(tmp_path):
    path = tmp_path / "a b" / "ä.json"
    files.write(path, [{"text": "Käse 🧀"}])
    text = path.read_text(encoding="utf-8")
    assert "Käse 🧀" in text
    assert len(text.splitlines()) == 5
    assert files.read_json(path) == json.loads(text)
    files.write(tmp_path / "a.md", "| a |\n")
    assert (tmp_path / "a.md").read_text() == "| a |\n"


@examples(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=JSON)
def test_json_comes_back_as_it_was(tmp_path, data):
    try:
        files.write(tmp_path / "a.json", data)
    except UnicodeEncodeError:  # half characters are no text
        return
    if isinstance(data, str):  # a text is no JSON
        return
    assert files.read_json(tmp_path / "a.json") == data
    assert files.fingerprint(files.read_json(tmp_path / "a.json")) == files.fingerprint(data)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'[{"id": "harmful-00"', b"[" * 10_000, b"\x00", b"NaN,", b"\xff\xfe"]
)
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, damage):
    (tmp_path / "scores.json").write_bytes(damage)
    with pytest.raises(ValueError, match=r"scores\.json is damaged \(the whole file.*FRESH = True"):
        files.read_json(tmp_path / "scores.json")


def test_data_of_another_kind_are_named_with_the_place(tmp_path):
    files.write(tmp_path / "a.json", {"a": [1, "x"]})
    with pytest.raises(
        ValueError, match=r"a\.json is damaged \(a\.1: Input should be a valid integer"
    ):
        files.read_json(tmp_path / "a.json", dict[str, list[int]])


# ---- known by their sha256


def test_sha256_of_a_folder_depends_on_names_and_contents_alone(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "x.json").write_text("1")
    (tmp_path / "a" / "y.json").write_text("2")
    before = files.sha256_of(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / ".DS_Store").write_bytes(b"x")  # systems strew such files about
    (tmp_path / "b" / ".cache").mkdir()
    (tmp_path / "b" / ".cache" / "z.json").write_text("3")
    assert files.sha256_of(tmp_path / "b") == before
    (tmp_path / "b" / "deep" / "x.json").rename(tmp_path / "b" / "x.json")
    assert files.sha256_of(tmp_path / "b") != before
    (tmp_path / "a" / "y.json").write_text("3")
    assert files.sha256_of(tmp_path / "a") != before


def test_sha256_is_that_of_the_file_behind_a_link(tmp_path):
    (tmp_path / "blob").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "blob")
    assert files.sha256_of(tmp_path / "link") == files.sha256_of(tmp_path / "blob")


def test_fingerprint_does_not_depend_on_the_order_of_keys():
    assert files.fingerprint({"a": 1, "b": 2}) == files.fingerprint({"b": 2, "a": 1})
    assert files.fingerprint([1, 2]) != files.fingerprint([2, 1])


# ---- removing


def test_what_other_names_share_is_not_emptied(tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "copy").hardlink_to(tmp_path / "kept")
    (tmp_path / "other").write_text("other")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "other")
    files.remove(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "kept").read_text() == "kept"
    assert (tmp_path / "other").read_text() == "other"


@pytest.mark.parametrize("inside", [True, False])
def test_a_link_to_a_folder_goes_and_the_folder_stays(tmp_path, inside):
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "weights").write_text("kept")
    removed = tmp_path / "removed"
    link = removed / "link" if inside else removed
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "backup", target_is_directory=True)
    files.remove(removed)
    assert names_in(tmp_path) == ["backup"]
    assert (tmp_path / "backup" / "weights").read_text() == "kept"


def test_files_are_emptied_before_they_are_removed(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints" / "checkpoint-10"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(bytes(1000))
    remove, sizes = shutil.rmtree, []

    def watch(path, **options):
        sizes.extend(file.stat().st_size for file in path.rglob("*") if file.is_file())
        remove(path, **options)

    monkeypatch.setattr(files.shutil, "rmtree", watch)
    files.remove(tmp_path / "checkpoints")
    assert sizes == [0]
    (tmp_path / "a.json").write_text("1")
    files.remove(tmp_path / "a.json")
    files.remove(tmp_path / "nowhere")
    assert names_in(tmp_path) == []


# ---- no room left


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; tests are skipped if it cannot be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_explained_and_leaves_the_earlier_file(small_disk):
    path = small_disk / "scores.json"
    files.write(path, [1])
    message = r"no room left to write into .*small\. .*Free some space.*run again"
    with pytest.raises(OSError, match=message) as error:
        files.write(path, ["x" * 2**21])
    assert error.value.__cause__.errno == errno.ENOSPC
    assert load(path) == [1]
    assert names_in(small_disk) == ["scores.json"]


def test_a_limit_on_the_size_of_files_is_explained_likewise(tmp_path):
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
    assert names_in(tmp_path) == ["scores.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left (os error 28)"),
    ],
)
def test_every_wording_of_a_full_disk_is_understood(tmp_path, error):
    with (
        pytest.raises(OSError, match="There is no room left") as explained,
        files.full_disk_explained(tmp_path),
    ):
        raise error
    assert explained.value.__cause__ is error


def test_errors_while_no_room_is_left_are_explained_and_others_are_not(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="^enforce fail$"), files.full_disk_explained(tmp_path):
        raise RuntimeError("enforce fail")
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="no room left"), files.full_disk_explained(tmp_path):
        raise RuntimeError("enforce fail")  # how torch words it


def test_clone_has_the_same_bytes_where_git_converts_the_ends_of_lines(tmp_path):
    """A run's record contains the sha256 of files of the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout of git")
    clone = ["git", "-c", "core.autocrlf=true", "clone", "--quiet", ROOT, tmp_path / "clone"]
    subprocess.run(clone, check=True)
    for name in ("merges.txt", "config.json", "model.safetensors"):
        place = f"demo/hub/opt/{name}"
        assert (tmp_path / "clone" / place).read_bytes() == (ROOT / place).read_bytes()
    command = ["git", "-C", tmp_path / "clone", "ls-files", "--eol"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "w/lf" in listed
    assert "w/crlf" not in listed
    assert "w/mixed" not in listed
