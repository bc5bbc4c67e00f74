"""Download the two data sets of the study from Kaggle: resumed when broken off, verified, put in place in one step.

Kaggle's own client signs in, asks for the archive and follows the redirect to the storage; the bytes are fetched here,
since the client has no time limit and, on a retry, writes the storage's error page into the file. Nothing of the
client's output reaches the user, and no token is read, printed or saved by this module.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import itertools
import json
import os
import re
import shutil
import stat
import sys
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from brainlib.files import DataError, data_root, explain, write_text

WAITS = (2, 5, 15, 40)  # seconds before each new attempt; bytes received start the row again
ANSWER_SECONDS = 90  # how long Kaggle may take to answer a request
READ_SECONDS = 60  # how long the storage may be silent
NOTE = ".kaggle.json"  # in a finished folder: where it comes from and what was counted
TABLES = {"meta_data.csv", "name_mapping.csv", "survival_info.csv"}
MRI_COUNTS = {"glioma": (1321, 300), "meningioma": (1339, 306), "notumor": (1595, 405), "pituitary": (1457, 300)}


@dataclass(frozen=True)
class KaggleSet:
    """What a data set on Kaggle must hold.

    Attributes:
        slug: owner and name on Kaggle.
        folder: where it lies under the data root.
        pattern: matches the path of a file that counts; its last group is the key that the file counts for.
        expected: files for each key.
        largest: an archive that would unpack to more bytes is refused.
    """

    name: str
    slug: str
    folder: str
    pattern: str
    expected: Mapping[str, int] = field(repr=False)
    largest: int = 10**9

    @property
    def page(self) -> str:
        """The address of the data set for people."""
        return f"https://www.kaggle.com/datasets/{self.slug}"

    def tally(self, names: Iterable[str]) -> Counter[str]:
        """Count the files among ``names`` (paths with forward slashes) under their keys."""
        matches = (re.search(self.pattern, name) for name in names)
        return Counter(match[match.lastindex] for match in matches if match)

    def differences(self, found: Mapping[str, int], expected: Mapping[str, int] | None = None) -> list[str]:
        """One entry such as ``Testing/glioma 299 of 300`` for each key whose count is not the expected one."""
        expected = self.expected if expected is None else expected
        keys = [*expected, *sorted(set(found) - set(expected))]
        return [f"{k} {found.get(k, 0)} of {expected.get(k, 0)}" for k in keys if found.get(k, 0) != expected.get(k, 0)]


SETS = {
    "mri": KaggleSet(
        name="mri",
        slug="masoudnickparvar/brain-tumor-mri-dataset",
        folder="brain-tumor-mri",
        pattern=rf"(?:^|/)((?:Training|Testing)/(?:{'|'.join(MRI_COUNTS)}))/(?!\.)[^/]+\.(?i:jpe?g)$",
        expected={f"{s}/{c}": n[i] for i, s in enumerate(("Training", "Testing")) for c, n in MRI_COUNTS.items()},
        largest=2 * 10**9,
    ),
    "brats": KaggleSet(
        name="brats",
        slug="awsaf49/brats2020-training-data",
        folder="brats2020",
        pattern=r"(?:^|/)(?:(volume_\d+)_slice_\d+\.h5|((?:meta_data|name_mapping|survival_info)\.csv))$",
        expected={**{f"volume_{n}": 155 for n in range(1, 370)}, **dict.fromkeys(sorted(TABLES), 1)},
        largest=40 * 10**9,
    ),
}


class Interrupted(DataError):
    """A failure that another attempt may mend; ``wait`` is the pause in seconds that the server asked for."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Offline(Interrupted):
    """No connection at all: worth another attempt only when there was one before."""


@dataclass(frozen=True)
class Remote:
    """Where the archive lies, and what proves that it is the same file as before."""

    request: Any  # the prepared request that the storage answered
    size: int | None
    tag: str | None


def download(
    name: str | KaggleSet,
    root: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
    force: bool = False,
    archive: str | os.PathLike[str] | None = None,
    version: int | None = None,
    accept_counts: bool = False,
) -> Path:
    """Download a data set, verify it and put it in place; return its folder. Instant when it is there and complete.

    A broken download is kept in ``downloads/`` under the data root and goes on with the next call. Every file is
    checked against its size and checksum (CRC-32) in the archive, and the files are counted. No hashes of Kaggle's
    own files are known to the course, so nothing stronger is compared.

    Args:
        name: ``"mri"`` or ``"brats"``.
        root: data root. Default: `brainlib.files.data_root`.
        force: replace a folder that is there; the old one is kept beside it, with the ending ``.old``.
        archive: a zip file that was downloaded by hand, to verify and unpack instead of downloading.
        version: version of the data set on Kaggle. Default: the newest.
        accept_counts: keep a data set whose counts are not the expected ones.

    Raises:
        DataError: whatever keeps the data set from being complete; the message says what to do.
    """
    if isinstance(name, str) and name not in SETS:
        raise DataError(f"{name!r}: no such data set. Choose one of {', '.join(SETS)}")
    spec = SETS[name] if isinstance(name, str) else name
    root = data_root() if root is None else Path(root).expanduser()
    target = (root / spec.folder).resolve()  # a link to a larger disk stays a link
    if not force and target.is_dir() and any(target.iterdir()):
        found = spec.tally(walk(target))
        wrong = spec.differences(found, accepted_counts(target))
        if not wrong:
            _say(f"{target} is complete: {sum(found.values())} files", progress)
            return target
        raise DataError(
            f"{target} is there but not complete "
            f"({shorten(wrong) if set(found) - TABLES else 'it holds other files'}). "
            f"'brainlib data kaggle {spec.name} --force' makes it anew and keeps the old folder beside it as "
            f"{target.name}.old"
        )
    if archive is None:
        source = fetch(spec, root / "downloads", version, progress)
    else:
        source = Path(archive).expanduser()
        if not source.is_file():
            raise DataError(f"{source}: no such file")
    try:
        staging = unpack(source, target, spec, accept_counts, progress)
        place(staging, target, progress)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        if archive is None:
            source.unlink()
        mend = "it is removed; run the command again" if archive is None else "download it again"
        raise DataError(f"{source} is not a complete zip file ({error}): {mend}") from error
    if archive is None:
        for path in (source, source.with_suffix(".json")):
            path.unlink(missing_ok=True)
    return target


def walk(folder: Path, depth: int = 8) -> Iterator[str]:
    """Names of the files under ``folder``, relative and with forward slashes; no file is opened or asked for its size.

    Hidden folders and those deeper than ``depth`` are left out; links to folders are followed.
    """
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = Path(parent).relative_to(folder).as_posix()
        level = 0 if place == "." else place.count("/") + 1
        folders[:] = [] if level >= depth else [f for f in folders if not f.startswith(".") and f != "__MACOSX"]
        yield from files if level == 0 else (f"{place}/{f}" for f in files)


def shorten(entries: list[str], limit: int = 8) -> str:
    """The first entries in one line, and how many follow."""
    return ", ".join(entries[:limit]) + (f" and {len(entries) - limit} more" if len(entries) > limit else "")


def accepted_counts(folder: Path) -> dict[str, int] | None:
    """The counts of a data set that was kept although they are not the expected ones, else None."""
    try:
        return json.loads((folder / NOTE).read_text(encoding="utf-8"))["accepted"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fetch(spec: KaggleSet, folder: Path, version: int | None, progress: bool) -> Path:
    """Download the archive into ``folder``, going on where a former call stopped; return its path."""
    archive = folder / f"{spec.slug.replace('/', '-')}{f'-v{version}' if version else ''}.zip"
    if archive.is_file():
        _say(f"using {archive}, downloaded before", progress)
        return archive
    part = archive.with_name(f"{archive.name}.part")
    _say(f"downloading {spec.slug} (terms of use: {spec.page})", progress)
    remote, failures, connected = None, 0, False
    while True:
        before = _size(part)
        try:
            remote = remote or ask(spec, version)
            connected = True
            _stream(remote, part, archive.with_suffix(".json"), progress)
            os.replace(part, archive)
            return archive
        except Interrupted as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures > len(WAITS) or error.wait > 60 or (isinstance(error, Offline) and not connected):
                raise DataError(f"{error}{_kept(part)}") from error
            wait = max(error.wait, WAITS[failures - 1])
            _say(f"{error}; attempt {failures} of {len(WAITS)} follows in {wait:g} s", progress)
            time.sleep(wait)
            remote = None  # the address of the storage may have expired
        except OSError as error:
            raise explain(error, part) from error


def ask(spec: KaggleSet, version: int | None = None) -> Remote:
    """Ask Kaggle, through its client, where the archive lies.

    The client prints, ends the process (``sys.exit``) and may wait without end, some of it already when it is imported:
    so it runs in a thread of its own, with its output thrown away.
    """
    try:
        installed = importlib.metadata.version("kaggle")
        if int(installed.split(".")[0]) < 2:  # 1.7 reads the whole archive into memory, 1.6 has another interface
            raise DataError(f"kaggle {installed} is too old: pip install 'kaggle>=2,<3'")
    except importlib.metadata.PackageNotFoundError:
        raise DataError("the kaggle package is missing: pip install 'kaggle>=2,<3'") from None
    result: list[Any] = []

    def work() -> None:
        try:
            result.append(_request_archive(spec, version))
        except BaseException as error:  # SystemExit too: it would end the thread without a trace
            result.append(error)

    thread = threading.Thread(target=work, daemon=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        thread.start()
        thread.join(ANSWER_SECONDS)
    if not result:
        raise Interrupted(f"Kaggle did not answer within {ANSWER_SECONDS} seconds")
    if isinstance(result[0], BaseException):
        raise _explain_refusal(result[0], spec) from None  # the client's own text may hold a signed address
    return result[0]


def _request_archive(spec: KaggleSet, version: int | None) -> Remote:
    """Sign in and ask for the archive; its body is left unread."""
    from kaggle.api.kaggle_api_extended import KaggleApi
    from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest

    api = KaggleApi()
    api.args = [a for a in api.args if a != "--verbose"]  # set by $VERBOSE; it would read the whole archive into memory
    with contextlib.suppress(SystemExit):  # no token, or an unknown one: what Kaggle answers to the request decides
        api.authenticate()
    with api.build_kaggle_client() as client:
        request = ApiDownloadDatasetRequest()
        request.owner_slug, request.dataset_slug = spec.slug.split("/")
        request.dataset_version_number = version
        response = client.datasets.dataset_api_client.download_dataset(request)
        response.close()
    return Remote(response.request, *_identity(response))


def _identity(response: Any) -> tuple[int | None, str | None]:
    """Size and tag (ETag, else the date) of the file that a response carries, whole or in part."""
    whole = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
    return (int(whole) if whole.isdigit() else None), response.headers.get("ETag") or response.headers.get(
        "Last-Modified"
    )


def _token_source() -> str | None:
    """Where Kaggle's client finds a token, in its own order; None where there is none."""
    if os.environ.get("KAGGLE_API_TOKEN"):
        return "the variable KAGGLE_API_TOKEN"
    home = Path.home() / ".kaggle"
    places = [home / "access_token", home / "access_token.txt"]
    if os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY"):
        return next((str(p) for p in places if p.exists()), "the variables KAGGLE_USERNAME and KAGGLE_KEY")
    configured = os.environ.get("KAGGLE_CONFIG_DIR")
    settings = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    places += [Path(configured) / "kaggle.json"] if configured else []
    places += [home / "kaggle.json", Path(settings) / "kaggle" / "kaggle.json", home / "credentials.json"]
    return next((str(path) for path in places if path.exists()), None)


def _explain_refusal(error: BaseException, spec: KaggleSet) -> DataError:
    """What a failed request means for the user. The text of ``error`` is not repeated: it may hold an address."""
    import requests

    token = _token_source()
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    make = "make a new one at https://www.kaggle.com/settings/api"
    by_hand = (
        f"Or download the archive from {spec.page} in a browser and run "
        f"'brainlib data kaggle {spec.name} --archive FILE'"
    )
    if isinstance(error, ImportError):
        return DataError(
            f"Kaggle's client needs {error.name}, which is missing: pip install 'kaggle>=2,<3' {error.name}"
        )
    if status in (401, 403) and token is None:
        return DataError(
            f"Kaggle asks for a token to download {spec.slug}, and none was found: {make.replace('a new one', 'one')} "
            f"and set the variable KAGGLE_API_TOKEN to it, or save it as ~/.kaggle/access_token. {by_hand}"
        )
    if status == 401:
        return DataError(f"Kaggle does not accept the token from {token}: {make} and put it there. {by_hand}")
    if status == 403:
        return DataError(
            f"Kaggle refuses {spec.slug} to this account: open {spec.page}, sign in, accept the terms if it asks for "
            f"them, and run the command again. {by_hand}"
        )
    if status == 404:
        return DataError(f"Kaggle has no data set {spec.slug} (or not this version): look at {spec.page}. {by_hand}")
    if status == 429:
        after = response.headers.get("Retry-After", "")
        wait = float(after) if after.isdigit() else 0.0
        when = f"in {wait:g} seconds" if wait else "in an hour"
        return Interrupted(f"Kaggle has too many requests from this account: run the command again {when}", wait)
    if status is not None:
        problem = f"Kaggle has a problem (status {status}): run the command again later"
        return Interrupted(problem) if status >= 500 else DataError(problem)
    if re.search("RemoteDisconnected|ConnectionResetError|Connection aborted", str(error)):
        return Interrupted("Kaggle cut the connection")
    if isinstance(error, requests.exceptions.SSLError):
        return DataError("no secure connection to Kaggle: check the clock, proxy and certificates of this machine")
    if isinstance(error, requests.exceptions.ProxyError):
        return Offline("the proxy cannot reach Kaggle: check HTTP_PROXY and HTTPS_PROXY")
    if isinstance(error, requests.exceptions.ConnectionError):
        return Offline(f"no connection to Kaggle: check the network. {by_hand}")
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        return DataError(f"Kaggle's client cannot start ({error.strerror}): {error.filename}")
    return DataError(f"Kaggle's client failed ({type(error).__name__}): check the token files. {by_hand}")


def _stream(remote: Remote, part: Path, note: Path, progress: bool) -> None:
    """Append to ``part`` what it lacks of ``remote``; ``note`` beside it says which file the bytes belong to."""
    import requests

    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        stored = json.loads(note.read_text(encoding="utf-8"))
        same = remote.tag is not None and stored == {"size": remote.size, "tag": remote.tag}
    except (OSError, ValueError):
        same = False
    start = _size(part) if same else 0
    if remote.size is not None:
        check_space(part.parent, remote.size - start, remote.size + remote.size // 10)
        if start == remote.size:
            return
    headers = {**remote.request.headers, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if not remote.tag.startswith("W/"):  # a weak tag must not stand here
            headers["If-Range"] = remote.tag
    try:
        with requests.request(
            remote.request.method,
            remote.request.url,
            headers=headers,
            data=remote.request.body,
            stream=True,
            timeout=READ_SECONDS,
        ) as response:
            if response.status_code == 416:
                part.unlink()
            if response.status_code >= 400:
                raise Interrupted(f"Kaggle's storage answers with status {response.status_code}")
            size, tag = _identity(response)
            if start and (size, tag) != (remote.size, remote.tag):
                raise Interrupted("the archive on Kaggle changed during the download")
            if response.status_code != 206 or not response.headers["Content-Range"].startswith(f"bytes {start}-"):
                start = 0
            write_text(note, json.dumps({"size": size, "tag": tag}))
            with (
                part.open("ab" if start else "wb") as sink,
                tqdm(
                    desc=part.name.split(".")[0][-24:],
                    total=size,
                    initial=start,
                    unit="B",
                    unit_scale=True,
                    ncols=90,
                    disable=not progress,
                    file=sys.stderr,
                ) as bar,
            ):
                for block in response.iter_content(1 << 16):
                    sink.write(block)
                    bar.update(len(block))
    except requests.RequestException as error:
        raise Interrupted("the connection to Kaggle's storage broke") from error
    if size is not None and _size(part) != size:
        raise Interrupted("the connection to Kaggle's storage ended early")


def check_space(folder: Path, archive: int, unpacked: int) -> None:
    """Refuse to start what the disk cannot hold: ``archive`` bytes to download, ``unpacked`` bytes of files."""
    folder = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < archive + unpacked:
        download = f"{gigabytes(archive)} to download and " if archive else ""
        raise DataError(
            f"not enough space at {folder}: {download}{gigabytes(unpacked)} to unpack are needed, {gigabytes(free)} "
            "are free. Free some space, or point BRAINLIB_DATA to a larger disk"
        )


def gigabytes(count: int) -> str:
    """A number of bytes in GB, or in MB when it is small."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def unpack(archive: Path, target: Path, spec: KaggleSet, accept_counts: bool, progress: bool) -> Path:
    """Verify ``archive`` and unpack it into a hidden folder beside ``target``; return that folder.

    An unpacking that was broken off goes on: files whose size and checksum are right are kept.
    """
    with zipfile.ZipFile(archive) as content:
        members = [info for info in content.infolist() if not info.is_dir()]
        check_members(archive, members, spec)
        found = spec.tally(info.filename for info in members)
        wrong = spec.differences(found)
        if wrong and not accept_counts:
            raise DataError(
                f"{archive} is not the data set that the course knows: {shorten(wrong)}. Kaggle may hold a newer "
                f"version: 'brainlib data kaggle {spec.name} --version 1' asks for the first one, and with "
                "--accept-counts this one is kept as it is (the numbers in the course are then not reproduced)"
            )
        digest = zlib.crc32(repr(sorted((info.filename, info.CRC) for info in members)).encode())
        staging = target.with_name(f".{target.name}-{digest:08x}")
        try:
            for stale in target.parent.glob(f".{target.name}-*"):
                if stale != staging:
                    shutil.rmtree(stale)
            lacking = [info for info in members if not _is_unpacked(staging / info.filename, info)]
            check_space(target.parent, 0, sum(info.file_size for info in lacking))
            for info in tqdm(lacking, "unpacking", ncols=90, disable=not progress, file=sys.stderr, unit=" files"):
                path = staging / info.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                with content.open(info) as source, path.open("wb") as sink:  # zipfile compares the checksum at the end
                    shutil.copyfileobj(source, sink, 1 << 20)
            note = {"slug": spec.slug, "files": len(members), "archive_bytes": archive.stat().st_size}
            write_text(staging / NOTE, json.dumps({**note, **({"accepted": found} if wrong else {})}, indent=1))
        except OSError as error:
            raise explain(error, target) from error
    return staging


def check_members(archive: Path, members: list[zipfile.ZipInfo], spec: KaggleSet) -> None:
    """Refuse names that lead out of the folder, links, duplicates, encrypted files, and an absurd total size."""
    names = [info.filename for info in members]
    for info in members:
        path = PurePosixPath(info.orig_filename)
        if path.is_absolute() or {"..", ""} & set(path.parts) or re.search(r"[\\:\x00]", info.orig_filename):
            raise DataError(f"{archive} holds the unsafe name {info.orig_filename!r}: it is not unpacked")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{archive} holds the link {info.filename!r}: it is not unpacked")
        if info.flag_bits & 1:
            raise DataError(f"{archive} is encrypted: it is not unpacked")
    if len(set(names)) < len(names):
        raise DataError(f"{archive} holds several files of one name: it is not unpacked")
    total = sum(info.file_size for info in members)
    if total > spec.largest:
        limit = gigabytes(spec.largest)
        raise DataError(f"{archive} would unpack to {gigabytes(total)}, more than {limit}: it is not unpacked")


def place(staging: Path, target: Path, progress: bool) -> None:
    """Rename ``staging`` to ``target``; what was there is kept beside it with the ending ``.old``."""
    aside = None
    try:
        if target.exists() and any(target.iterdir()):
            endings = itertools.chain([".old"], (f".old{n}" for n in itertools.count(2)))
            aside = next(p for p in (target.with_name(target.name + e) for e in endings) if not p.exists())
            os.rename(target, aside)
        try:
            os.rename(staging, target)
        except OSError:
            if aside is not None:
                os.rename(aside, target)
            raise
    except OSError as error:
        raise explain(error, target) from error
    if aside is not None:
        _say(f"the former folder is kept as {aside}: delete it when you do not need it", progress)


def _is_unpacked(path: Path, info: zipfile.ZipInfo) -> bool:
    """Whether ``path`` holds the bytes of ``info``."""
    return _size(path) == info.file_size and path.is_file() and zlib.crc32(path.read_bytes()) == info.CRC


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _kept(part: Path) -> str:
    size = _size(part)
    return f". {gigabytes(size)} are kept; the same command goes on from there" if size else ""


def _say(message: str, progress: bool) -> None:
    if progress:
        print(message, file=sys.stderr, flush=True)
