"""Where data live, and how a file is written so that a crash leaves the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs


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
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; on success rename it to ``target``, on failure remove it.

    The temporary file lies in the same folder (a rename across file systems is not atomic) and keeps the suffix, since
    many writers choose the format by it. Parent folders are made.

    Raises:
        DataError: the folder is read-only, or the disk is full. ``target`` is then what it was before.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise explain(error, target) from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private to their owner; a finished file follows the user's own habit (umask).
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, target)
    except OSError as error:
        raise explain(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``target`` atomically, as UTF-8."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
