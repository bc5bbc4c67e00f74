"""Files are written whole or not at all, and what the user can mend is said in one message."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import mounted, tree
from safetensors.torch import load_file

from brainlib.files import (
    DataError,
    atomic_path,
    data_root,
    exclusive,
    explain,
    remove_leftovers,
    sync_file,
    write_tensors,
    write_text,
)


def test_data_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.setenv("BRAINLIB_DATA", "~/slices")
    assert data_root() == Path.home() / "slices"
    monkeypatch.delenv("BRAINLIB_DATA")
    assert data_root().name == "brainlib" and data_root().is_absolute()


def test_write_text_makes_folders_and_replaces(tmp_path):
    target = tmp_path / "a" / "b" / "note.txt"
    write_text(target, "first")
    write_text(target, "Grüße\n")
    assert target.read_bytes() == "Grüße\n".encode()
    assert list(tree(tmp_path)) == ["a/b/note.txt"]


def test_temporary_path_lies_beside_the_target_and_keeps_its_suffix(tmp_path):
    with atomic_path(tmp_path / "x.npz") as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".npz" and temporary.name.startswith(".")
        temporary.write_bytes(b"1")
        assert not (tmp_path / "x.npz").exists()
    assert tree(tmp_path) == {"x.npz": b"1"}


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "x", "1")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_failure_leaves_the_old_file_alone(tmp_path, error):
    write_text(tmp_path / "x", "old")
    with pytest.raises(DataError if isinstance(error, OSError) else type(error)):
        with atomic_path(tmp_path / "x") as temporary:
            temporary.write_text("half of the n")
            raise error
    assert tree(tmp_path) == {"x": b"old"}


# Root may write where others may not, so the errors of a read-only or full disk are raised by hand here; the tests
# with a real disk below are skipped where none can be mounted.
@pytest.mark.parametrize("call", ["tempfile.mkstemp", "os.replace"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "cannot be written to"),
        (errno.EACCES, "cannot be written to"),
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_each_error_is_explained(tmp_path, monkeypatch, call, number, words):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    write_text(tmp_path / "x.txt", "old")
    monkeypatch.setattr(call, fail)
    with pytest.raises(DataError, match=words) as caught:
        write_text(tmp_path / "x.txt", "new")
    assert str(tmp_path / "x.txt") in str(caught.value)
    assert tree(tmp_path) == {"x.txt": b"old"}


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "runs").write_text("I am a file")
    with pytest.raises(DataError, match="runs/x.txt"):
        write_text(tmp_path / "runs" / "x.txt", "new")
    assert tree(tmp_path) == {"runs": b"I am a file"}


def test_error_without_a_number_is_still_told():
    assert "strange" in str(explain(OSError("strange"), Path("x")))


def test_full_disk(tmp_path):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        write_text(disk / "x.txt", "old")
        with pytest.raises(DataError, match="disk is full"):
            write_text(disk / "x.txt", "n" * 100_000)
        with pytest.raises(DataError, match="disk is full"):
            write_tensors(disk / "x.safetensors", {"a": torch.zeros(100_000)})
        assert tree(disk) == {"x.txt": b"old"}


def test_read_only_disk(tmp_path):
    with mounted(tmp_path / "disk", "size=64k,ro") as disk:
        with pytest.raises(DataError, match="cannot be written to"):
            write_text(disk / "folder" / "x.txt", "new")
        with pytest.raises(DataError, match="cannot be written to"):
            write_tensors(disk / "x.safetensors", {"a": torch.zeros(1)})


def test_tensors_round_trip(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
    write_tensors(tmp_path / "x.safetensors", tensors, {"note": "text"})
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys() and all(torch.equal(read[k], tensors[k]) for k in tensors)


def test_killed_writer_leaves_the_old_file_and_its_leftover_can_be_removed(tmp_path):
    write_text(tmp_path / "x.txt", "old")
    (tmp_path / ".x-other.txt").write_text("not of this kind")
    (tmp_path / ".y-abcdefgh.txt").write_text("of another target")
    script = (
        "import sys, time; from brainlib.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as t:\n"
        "    t.write_text('half'); print('writing', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "x.txt")], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert len(tree(tmp_path)) == 4 and (tmp_path / "x.txt").read_text() == "old"
    remove_leftovers(tmp_path / "x.txt")
    assert sorted(tree(tmp_path)) == [".x-other.txt", ".y-abcdefgh.txt", "x.txt"]
    remove_leftovers(tmp_path / "no folder" / "x.txt")


def test_what_safetensors_leaves_when_it_is_killed_can_be_removed(tmp_path):
    script = """
import sys, time, pathlib, torch, safetensors.torch
from brainlib.files import write_tensors

def save_file(tensors, path, metadata):  # as safetensors 0.8 goes about it
    pathlib.Path(path).with_name(".tmpAb1Cd2").write_text("half")
    print("writing", flush=True)
    time.sleep(60)

safetensors.torch.save_file = save_file
write_tensors(sys.argv[1], {"a": torch.zeros(1)})
"""
    target = tmp_path / "run.safetensors"
    write_tensors(target, {"a": torch.ones(1)})
    writer = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert len(list(tmp_path.iterdir())) == 3  # the old file, an empty one and a folder
    remove_leftovers(target)
    assert list(tmp_path.iterdir()) == [target] and load_file(target)["a"] == 1


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace

    def synced(handle):
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("os.replace", lambda *paths: steps.append("name") or replace(*paths))
    write_text(tmp_path / "x.txt", "1")
    with atomic_path(tmp_path / "y.txt", durable=False) as temporary:
        temporary.write_text("2")
    assert steps == ["file", "name", "folder", "name"]
    sync_file(tmp_path / "y.txt")
    assert steps[4:] == ["file"]
    assert tree(tmp_path) == {"x.txt": b"1", "y.txt": b"2"}


def test_a_folder_that_cannot_be_synced_is_no_error_but_a_file_is(tmp_path, monkeypatch):
    fsync = os.fsync

    def fails_for(wanted):
        def synced(handle):
            if stat.S_ISDIR(os.fstat(handle).st_mode) == wanted:
                raise OSError(errno.EDQUOT, "over quota")
            fsync(handle)

        return synced

    monkeypatch.setattr("os.fsync", fails_for(True))
    write_text(tmp_path / "x.txt", "old")
    monkeypatch.setattr("os.fsync", fails_for(False))
    with pytest.raises(DataError, match="disk is full"):
        write_text(tmp_path / "x.txt", "new")
    assert tree(tmp_path) == {"x.txt": b"old"}


def test_one_at_a_time_is_inside_and_the_file_stays(tmp_path):
    lock, inside, most = tmp_path / "folder" / ".lock", [], []

    def enter():
        for _ in range(5):
            with exclusive(lock):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) == 20
    assert tree(tmp_path) == {"folder/.lock": b""}


def test_a_disk_without_locks_and_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with exclusive(tmp_path / ".lock"):
        pass
    with pytest.raises(OSError, match="of the block"), exclusive(tmp_path / ".lock"):
        raise OSError("of the block")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/.lock"), exclusive(tmp_path / "file" / ".lock"):
        pass


def test_readers_never_see_half_a_file(tmp_path):
    target = tmp_path / "x.txt"
    write_text(target, "0" * 50_000)
    done = threading.Event()

    def write():
        for i in range(30):
            write_text(target, str(i % 10) * 50_000)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        text = target.read_text()
        assert len(text) == 50_000 and len(set(text)) == 1
    writer.join()
