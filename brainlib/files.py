"""Where data live, and how a file is written so that a crash leaves the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

if TYPE_CHECKING:
    import torch


class DataError(ValueError):
    """Something that the user can mend (a file, a name); the message says how. The command line shows it bare."""


def data_root() -> Path:
    """The folder that holds ``phantom/``, ``brain-tumor-mri/`` and ``brats2020/``.

    ``$BRAINLIB_DATA`` if it is set, else the user's cache folder. The folder need not exist yet.
    """
    configured = os.environ.get("BRAINLIB_DATA")
    return Path(configured).expanduser() if configured else platformdirs.user_cache_path("brainlib")


def explain(error: OSError, path: Path) -> DataError:
    """Turn an operating-system error met while writing ``path`` into a message that says what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full: free some space, or point BRAINLIB_DATA to a larger disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = "the folder cannot be written to: change its permissions, or point BRAINLIB_DATA to one that can"
    else:
        reason = error.strerror or str(error)
    return DataError(f"cannot write {path}: {reason}")


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; on success rename it to ``target``, on failure remove it.

    The temporary file lies in the same folder (a rename across file systems is not atomic) and keeps the suffix, since
    many writers choose the format by it. Parent folders are made.

    Args:
        durable: have the content on the disk before it gets its name, or a power failure could leave the name with
            nothing behind it. Without, many files are written faster; pass each to `sync_file` before a last one says
            that they are complete.

    Raises:
        DataError: the folder is read-only, or the disk is full. ``target`` is then what it was before.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_temporary_prefix(target), suffix=target.suffix, dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise explain(error, target) from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private to their owner; a finished file follows the user's own habit (umask).
        mask = os.umask(0)
        os.umask(mask)
        if durable:
            sync_file(temporary)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, target)
        if durable:
            _sync_folder(target.parent)
    except OSError as error:
        raise explain(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on the disk, where the system can (Windows and some disks cannot)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let one process at a time run the block; the others wait.

    ``path`` is an empty file for the lock alone, made with its folders. It is never removed: a process that waits for
    a removed file and one that makes it anew would both go on. The system drops the lock when a process ends. On
    Windows and on disks without locks nobody waits, so what is done twice at once must do no harm.

    Raises:
        DataError: the file cannot be made.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "w")
    except OSError as error:
        raise explain(error, path) from error
    with handle:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _temporary_prefix(target: Path) -> str:
    return f".{target.stem}-"


def remove_leftovers(target: str | os.PathLike[str]) -> None:
    """Remove what a killed process left beside ``target``; only for a process that alone writes it."""
    target = Path(target)
    name = re.compile(re.escape(_temporary_prefix(target)) + r"[a-z0-9_]{8}" + re.escape(target.suffix))
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        if name.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``target`` atomically, as UTF-8."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(
    target: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write contiguous tensors on the CPU to ``target`` atomically, as a safetensors file."""
    from safetensors import SafetensorError  # here, since most users of this module write no tensors
    from safetensors.torch import save_file

    target = Path(target)
    # safetensors from 0.8 on writes to a temporary file of its own beside the path that it is given, and a killed
    # process leaves it there under a name that tells nothing. In a folder of ours, remove_leftovers finds it.
    folder = {"prefix": _temporary_prefix(target), "suffix": target.suffix, "dir": target.parent}
    with atomic_path(target) as temporary, tempfile.TemporaryDirectory(**folder) as inner:
        written = Path(inner, target.name)
        try:
            save_file(dict(tensors), written, dict(metadata) if metadata is not None else None)
        except SafetensorError as error:
            # safetensors gives the number of the system's error (a full disk, say) in the text alone.
            number = re.search(r"(?:os error|code:) (\d+)", str(error))
            raise OSError(int(number[1]) if number else None, str(error)) from error
        os.replace(written, temporary)
