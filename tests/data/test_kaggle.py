"""Downloads from Kaggle: its own client against a stand-in for the service, with every way in which it can fail."""

import errno
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import hear_ctrl_c
from kaggle_service import KEY, TOKEN, USER, KaggleService, make_archive

from brainlib import course
from brainlib.data import kaggle
from brainlib.data.kaggle import SETS, KaggleSet, download
from brainlib.files import DataError

SMALL = replace(SETS["mri"], expected=dict.fromkeys(SETS["mri"].expected, 2), largest=10**7)
SECRETS = (TOKEN, KEY, "signed-secret")
NOISE = os.urandom(150_000)


def pictures(expected, size=None):
    """Files of a small data set; with ``size`` the first one is long enough to be cut."""
    files = {f"{key}/Tr_{i:04d}.jpg": f"{key} {i}".encode() for key, n in expected.items() for i in range(n)}
    if size:
        files[next(iter(files))] = NOISE * (size // len(NOISE))
    return files


FILES = pictures(SMALL.expected, 900_000)


@pytest.fixture(scope="module", autouse=True)
def fresh_client():
    """The client takes its settings when it is imported; it is imported again in this module and forgotten after it."""

    def forget():
        for name in [name for name in sys.modules if name == "kaggle" or name.startswith("kaggle.")]:
            del sys.modules[name]

    forget()
    yield
    forget()


@pytest.fixture
def service(tmp_path, monkeypatch):
    """The stand-in with a good archive, and an environment that leads the client to it with a token."""
    (tmp_path / "home").mkdir()
    with KaggleService(SMALL.slug, make_archive(FILES)) as running:
        set_variables(monkeypatch, running.environment(tmp_path / "home", KAGGLE_API_TOKEN=TOKEN))
        monkeypatch.setattr(kaggle, "WAITS", (0, 0, 0))
        yield running


def set_variables(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)


@pytest.fixture
def root(tmp_path, service, capfd):
    """A data root; when the test is over, no secret may stand in what was printed or written."""
    folder = tmp_path / "root"
    yield folder
    captured = capfd.readouterr()
    text = captured.out + captured.err
    text += "".join(p.read_text(errors="replace") for p in folder.rglob("*.json") if p.is_file())
    assert not any(secret in text for secret in SECRETS)
    assert captured.out == "" and "Traceback" not in captured.err


def failure(root, **options):
    """The message with which a download fails; it names neither a secret nor a Python class of the client."""
    with pytest.raises(DataError) as caught:
        download(options.pop("spec", SMALL), root, **options)
    message = str(caught.value)
    assert not any(secret in message for secret in SECRETS) and "HTTPError" not in message
    return message


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def is_complete(folder):
    found = contents(folder)
    found.pop(kaggle.NOTE)
    return found == FILES


def test_a_data_set_is_downloaded_verified_and_put_in_place(service, root, capfd):
    folder = download(SMALL, root)
    assert folder == root / "brain-tumor-mri" and is_complete(folder)
    assert [p.name for p in root.iterdir() if p.name.startswith(".")] == [] and not any((root / "downloads").iterdir())
    bars = capfd.readouterr().err
    assert "downloading masoudnickparvar/brain-tumor-mri-dataset" in bars and "unpacking" in bars and "100%" in bars
    assert all(headers["Authorization"] == f"Bearer {TOKEN}" for headers in service.asked("localhost"))
    assert service.asked("storage.test") and not any("Authorization" in h for h in service.asked("storage.test"))
    service.requests.clear()
    assert download(SMALL, root) == folder and not service.requests
    assert "is complete: 16 files" in capfd.readouterr().err


def test_without_progress_nothing_is_printed(service, root, capfd):
    download(SMALL, root, progress=False)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_the_answer_may_be_the_archive_itself(service, root):
    service.redirect = False
    service.storage_faults.append(("cut", 458_752))
    assert is_complete(download(SMALL, root))


@pytest.mark.parametrize("verbose", ["1", None])
@pytest.mark.parametrize("place", ["access_token", "kaggle.json", "variables", "nothing"])
def test_tokens_are_found_where_kaggle_looks_for_them(service, root, tmp_path, monkeypatch, place, verbose):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    set_variables(monkeypatch, {"VERBOSE": verbose})
    (tmp_path / "home" / ".kaggle").mkdir()
    if place == "access_token":
        (tmp_path / "home" / ".kaggle" / place).write_text(TOKEN + "\n")
    elif place == "kaggle.json":
        (tmp_path / "home" / ".kaggle" / place).write_text(json.dumps({"username": USER, "key": KEY}))
    elif place == "variables":
        set_variables(monkeypatch, {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY})
    else:
        service.anonymous = True  # Kaggle gives some data sets to everybody
    assert is_complete(download(SMALL, root))


def test_no_token(service, root, monkeypatch):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    message = failure(root)
    assert "Kaggle asks for a token" in message and "none was found" in message
    assert "https://www.kaggle.com/settings/api" in message and "KAGGLE_API_TOKEN" in message
    assert SMALL.page in message and "brainlib data kaggle mri --archive FILE" in message
    assert not (root / "brain-tumor-mri").exists()


@pytest.mark.parametrize("place", ["variable", "access_token", "kaggle.json"])
def test_wrong_token(service, root, tmp_path, monkeypatch, place):
    wrong = "KGAT_wrong-" + KEY
    if place == "variable":
        monkeypatch.setenv("KAGGLE_API_TOKEN", wrong)
    else:
        monkeypatch.delenv("KAGGLE_API_TOKEN")
        (tmp_path / "home" / ".kaggle").mkdir()
        text = wrong if place == "access_token" else json.dumps({"username": USER, "key": wrong})
        (tmp_path / "home" / ".kaggle" / place).write_text(text)
    message = failure(root)
    assert "does not accept the token from" in message and "make a new one" in message
    assert ("the variable KAGGLE_API_TOKEN" if place == "variable" else place) in message


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (
            [403],
            "open https://www.kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset, sign in, accept the terms",
        ),
        ([404], "has no data set masoudnickparvar/brain-tumor-mri-dataset"),
        ([400], "has a problem (status 400)"),
        ([429] * 9, "too many requests from this account: run the command again in an hour"),
        ([(429, {"Retry-After": "900"})], "run the command again in 900 seconds"),
        ([500] * 9, "has a problem (status 500): run the command again later"),
        ([503] * 9, "has a problem (status 503)"),
        (["cut"] * 9, "Kaggle cut the connection"),
    ],
)
def test_refusals_say_what_to_do(service, root, faults, expected):
    service.api_faults.extend(faults)
    assert expected in failure(root)
    assert len(service.asked("localhost")) == min(len(faults), 4)


@pytest.mark.parametrize("fault", [429, (429, {"Retry-After": "1"}), 500, 503, "cut"])
def test_a_passing_problem_is_waited_out(service, root, capfd, fault):
    service.api_faults.append(fault)
    assert is_complete(download(SMALL, root))
    assert "attempt 1 of 3 follows" in capfd.readouterr().err


def test_a_data_set_that_does_not_exist(service, root):
    assert "has no data set nobody/nothing" in failure(root, spec=replace(SMALL, slug="nobody/nothing"))
    with pytest.raises(DataError, match="'lungs': no such data set. Choose one of mri, brats"):
        download("lungs", root)


def test_no_answer(service, root, monkeypatch):
    monkeypatch.setattr(kaggle, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(kaggle, "WAITS", ())
    service.api_faults.append("hang")
    assert "did not answer within 0.5 seconds" in failure(root)


def test_no_network(service, root, monkeypatch):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 80)) == 0:
            pytest.skip("this machine serves port 80, where the client would look")
    set_variables(monkeypatch, {"HTTP_PROXY": None, "http_proxy": None})
    message = failure(root)
    assert "no connection to Kaggle: check the network" in message and "--archive FILE" in message


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "http://nowhere.invalid:3128"])
def test_no_proxy(service, root, monkeypatch, proxy):
    set_variables(monkeypatch, {"HTTP_PROXY": proxy, "http_proxy": proxy})
    assert "the proxy cannot reach Kaggle: check HTTP_PROXY" in failure(root)


@pytest.mark.parametrize("fault", [("cut", 458_752), ("cut", 0), 500, 503, 403])
def test_a_broken_download_goes_on(service, root, fault, capfd):
    service.storage_faults.append(fault)
    assert is_complete(download(SMALL, root))
    fetched = [h for h in service.asked("storage.test") if h["Accept-Encoding"] == "identity"]
    assert len(fetched) == 2
    if fault == ("cut", 458_752):
        assert fetched[1]["Range"] == "bytes=458752-" and fetched[1]["If-Range"].startswith('"')
        assert "storage broke; attempt 1 of 3" in capfd.readouterr().err
    else:
        assert "Range" not in fetched[1]


def test_progress_starts_the_attempts_again(service, root):
    service.storage_faults.extend([("cut", 100_000)] * 7)
    assert is_complete(download(SMALL, root))
    service.storage_faults.clear()


def test_a_storage_that_stays_broken_keeps_the_bytes(service, root):
    service.storage_faults.extend([("cut", 393_216), 503, 503, 503, 503])
    message = failure(root)
    assert "storage answers with status 503. 0.4 MB are kept; the same command goes on from there" in message
    service.requests.clear()
    assert is_complete(download(SMALL, root))
    assert service.asked("storage.test")[-1]["Range"] == "bytes=393216-"


def part_of(root):
    return root / "downloads" / "masoudnickparvar-brain-tumor-mri-dataset.zip.part"


def test_bytes_of_another_file_are_not_continued(service, root):
    service.storage_faults.extend([("cut", 393_216), 503, 503, 503, 503])
    failure(root)
    changed = dict(FILES) | {next(iter(FILES)): NOISE[::-1] * 6}
    service.archive = make_archive(changed)
    folder = download(SMALL, root)
    assert (folder / next(iter(FILES))).read_bytes() == NOISE[::-1] * 6


@pytest.mark.parametrize("lack", ["ranges", "tagged"])
def test_a_storage_without_ranges_or_tags_starts_again(service, root, lack):
    setattr(service, lack, False)
    service.storage_faults.append(("cut", 393_216))
    assert is_complete(download(SMALL, root))


def test_a_file_that_is_too_long_starts_again(service, root):
    service.storage_faults.extend([("cut", 393_216), 503, 503, 503, 503])
    failure(root)
    part_of(root).write_bytes(b"x" * (len(service.archive) + 5))
    assert is_complete(download(SMALL, root))


def test_a_complete_file_is_not_fetched_again(service, root):
    service.storage_faults.extend([("cut", 393_216), 503, 503, 503, 503])
    failure(root)
    part_of(root).write_bytes(service.archive)
    service.requests.clear()
    assert is_complete(download(SMALL, root))
    assert not [h for h in service.asked("storage.test") if h["Accept-Encoding"] == "identity"]


@pytest.mark.parametrize("kind", ["page", "half", "flipped"])
def test_half_a_zip_or_none_is_removed(service, root, kind):
    good = service.archive
    if kind == "page":
        service.archive = b"<html>please sign in</html>"
    elif kind == "half":
        service.archive = good[: len(good) // 2]
    else:
        service.archive = good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]
    message = failure(root)
    assert "is not a complete zip file" in message and "it is removed; run the command again" in message
    assert not (root / "brain-tumor-mri").exists()
    service.archive = good
    assert is_complete(download(SMALL, root))


def test_another_number_of_files_is_kept_only_on_request(service, root, capfd):
    other = {name: data for name, data in FILES.items() if name != "Testing/glioma/Tr_0001.jpg"}
    good, service.archive = service.archive, make_archive(other)
    message = failure(root)
    assert "is not the data set that the course knows: Testing/glioma 1 of 2" in message
    assert "--version 1" in message and "--accept-counts" in message and not (root / "brain-tumor-mri").exists()
    service.requests.clear()
    folder = download(SMALL, root, accept_counts=True)
    assert not service.requests  # the archive was kept
    assert len(list(folder.rglob("*.jpg"))) == 15
    assert download(SMALL, root) == folder and "is complete: 15 files" in capfd.readouterr().err
    service.versions[1] = good
    assert is_complete(download(SMALL, root, version=1, force=True))
    assert "has no data set" in failure(root, version=7, force=True)


def test_what_is_there_is_never_lost(service, root, capfd):
    target = root / "brain-tumor-mri"
    mine = target / "Training" / "glioma" / "mine.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    message = failure(root)
    assert (
        "is there but not complete (Training/glioma 1 of 2" in message
        and "'brainlib data kaggle mri --force'" in message
    )
    assert not service.requests and mine.exists()
    service.archive = service.archive[:1000]
    failure(root, force=True)
    assert mine.read_bytes() == b"mine"
    service.archive = make_archive(FILES)
    assert is_complete(download(SMALL, root, force=True))
    assert (root / "brain-tumor-mri.old" / "Training" / "glioma" / "mine.jpg").read_bytes() == b"mine"
    assert "the former folder is kept as" in capfd.readouterr().err
    download(SMALL, root, force=True)
    assert (root / "brain-tumor-mri.old2").is_dir()


def test_a_failed_rename_puts_the_old_folder_back(service, root, monkeypatch):
    target = root / "brain-tumor-mri"
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("mine")
    assert "it holds other files" in failure(root)
    rename = os.rename

    def refuse(source, goal):
        if Path(goal) == target and Path(source).name.startswith("."):
            raise OSError(errno.EACCES, "Permission denied")
        rename(source, goal)

    monkeypatch.setattr(os, "rename", refuse)
    assert "cannot be written to" in failure(root, force=True)
    assert (target / "mine.txt").read_text() == "mine"


def test_a_link_to_another_disk_stays_a_link(service, root, tmp_path):
    (tmp_path / "disk" / "mri").mkdir(parents=True)
    root.mkdir()
    (root / "brain-tumor-mri").symlink_to(tmp_path / "disk" / "mri")
    assert is_complete(download(SMALL, root))
    assert (root / "brain-tumor-mri").is_symlink() and is_complete(tmp_path / "disk" / "mri")


def test_an_unpacking_goes_on_with_files_that_are_right(service, root, monkeypatch):
    copy, done = kaggle.shutil.copyfileobj, []

    def interrupted(source, sink, length):
        if len(done) == 5:
            sink.write(b"half")
            raise KeyboardInterrupt
        done.append(sink.name)
        copy(source, sink, length)

    monkeypatch.setattr(kaggle.shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(SMALL, root)
    staging = next(root.glob(".brain-tumor-mri-*"))
    assert not (root / "brain-tumor-mri").exists()
    damaged = Path(done[1])
    damaged.write_bytes(b"x" * damaged.stat().st_size)  # the right size, the wrong bytes
    monkeypatch.undo()
    (root / ".brain-tumor-mri-00000000").mkdir()  # of an archive that is no more
    service.requests.clear()
    times = {name: Path(name).stat().st_mtime_ns for name in done}
    folder = download(SMALL, root)
    assert is_complete(folder) and not service.requests and not list(root.glob(".*"))
    kept = [n for n in done if (folder / Path(n).relative_to(staging)).stat().st_mtime_ns == times[n]]
    assert len(kept) == 4


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("../evil.jpg", "unsafe"),
        ("/etc/evil.jpg", "unsafe"),
        ("a/../../evil.jpg", "unsafe"),
        ("a\\..\\evil.jpg", "unsafe"),
        ("C:/evil.jpg", "unsafe"),
        ("link", "link"),
        ("twice", "several files of one name"),
        ("encrypted", "encrypted"),
        ("bomb", "would unpack to 12.0 MB, more than 10.0 MB"),
    ],
)
def test_unsafe_archives_are_refused(service, root, tmp_path, name, word):
    source = tmp_path / "hand.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in FILES.items():
            archive.writestr(path, data)
        info = zipfile.ZipInfo(name)
        if name == "link":
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, b"\0" * 11_100_000 if name == "bomb" else b"x", zipfile.ZIP_DEFLATED)
        if name == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr(info, b"y")
    if name == "encrypted":
        data = bytearray(source.read_bytes())
        data[data.rfind(b"PK\x01\x02") + 8] |= 1
        source.write_bytes(data)
    assert word in failure(root, archive=source)
    assert source.exists() and not (root / "brain-tumor-mri").exists() and not list(tmp_path.rglob("evil*"))


def test_an_archive_downloaded_by_hand(service, root, tmp_path):
    source = tmp_path / "archive.zip"
    nested = {f"brain-tumor-mri-dataset/{name}": data for name, data in FILES.items()}
    source.write_bytes(make_archive(nested)[:-30])
    message = failure(root, archive=source)
    assert f"{source} is not a complete zip file" in message and "download it again" in message and source.exists()
    source.write_bytes(make_archive(nested))
    folder = download(SMALL, root, archive=source)
    assert contents(folder / "brain-tumor-mri-dataset") == FILES and source.exists() and not service.requests
    assert "no such file" in failure(root, archive=tmp_path / "none.zip", force=True)


def test_space_is_checked_before_the_download(service, root, monkeypatch):
    spec = replace(SETS["brats"], slug=SMALL.slug)
    monkeypatch.setattr(kaggle.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    service.pause = 0.05  # or the whole archive lies in buffers before the client has read how large it is
    message = failure(root, spec=spec)
    assert re.search(r"not enough space at .*: 0.9 MB to download and 1.0 MB to unpack are needed, 1.0 MB are", message)
    assert "BRAINLIB_DATA" in message and service.sent_bytes < 900_000
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"7\.0 GB to download and 7\.7 GB to unpack are needed"):
        monkeypatch.setattr(kaggle.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 14 * 10**9}))
        kaggle.check_space(root, 7 * 10**9, 77 * 10**8)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_full_disk(service, root):
    (root / "downloads").mkdir(parents=True)
    part_of(root).symlink_to("/dev/full")
    assert "the disk is full: free some space" in failure(root)


def test_a_full_disk_while_unpacking(service, root, monkeypatch):
    def full(source, sink, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kaggle.shutil, "copyfileobj", full)
    assert "the disk is full" in failure(root)
    monkeypatch.undo()
    assert is_complete(download(SMALL, root))


def test_a_folder_that_cannot_be_written_to(service, root, monkeypatch):
    root.mkdir()
    (root / "downloads").write_text("a file where the folder should be")
    assert f"cannot write {root / 'downloads'}" in failure(root)
    (root / "downloads").unlink()
    if os.geteuid():
        root.chmod(0o500)
    else:  # root may write everywhere
        monkeypatch.setattr(Path, "mkdir", lambda *a, **k: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
    assert "the folder cannot be written to" in failure(root)
    root.chmod(0o700)


def test_an_old_client_or_none_is_named(service, root, monkeypatch):
    monkeypatch.setattr(kaggle.importlib.metadata, "version", lambda name: "1.7.4.5")
    assert failure(root) == "kaggle 1.7.4.5 is too old: pip install 'kaggle>=2,<3'"

    def missing(name):
        raise kaggle.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(kaggle.importlib.metadata, "version", missing)
    assert failure(root) == "the kaggle package is missing: pip install 'kaggle>=2,<3'"


def test_what_the_sets_must_hold():
    mri, brats = SETS["mri"], SETS["brats"]
    assert sum(mri.expected.values()) == 7023
    assert sum(n for key, n in mri.expected.items() if key.startswith("Training")) == 5712
    assert sum(n for key, n in brats.expected.items() if key.startswith("volume")) == 57_195
    assert len(brats.expected) == 369 + 3 and mri.differences(mri.expected) == []
    names = ["archive/Training/glioma/1.JPG", "Training/glioma/.x.jpg", "Training/glioma/a.txt", "glioma/1.jpg"]
    assert mri.tally(names) == {"Training/glioma": 1}
    names = ["a/b/volume_3_slice_0.h5", "volume_3_slice_9.h5", "x/meta_data.csv", "x/BraTS20 Training Metadata.csv"]
    assert brats.tally(names) == {"volume_3": 2, "meta_data.csv": 1}
    assert isinstance(mri, KaggleSet) and brats.differences({"volume_400": 1})[-1] == "volume_400 1 of 0"


def command(*options):
    return [sys.executable, "-m", "brainlib", "data", "kaggle", *options]


def test_ctrl_c_and_the_same_command_goes_on(service, tmp_path):
    """The command itself, with the counts of the real set, in a process of its own."""
    files = pictures(SETS["mri"].expected, 6_000_000)
    service.archive, service.pause = make_archive(files), 0.02
    home = service.environment(tmp_path / "home", KAGGLE_API_TOKEN=TOKEN, BRAINLIB_DATA=str(tmp_path / "root"))
    environment = {k: v for k, v in {**os.environ, **home}.items() if v is not None}
    run = subprocess.Popen(
        command("mri"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    part, end = part_of(tmp_path / "root"), time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 1_000_000) and time.monotonic() < end:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 130 and out == "" and "interrupted; the same command goes on from here" in err
    assert "Traceback" not in err and not any(secret in err for secret in SECRETS)
    kept = part.stat().st_size
    assert 1_000_000 < kept < len(service.archive)
    service.pause = 0
    service.requests.clear()
    run = subprocess.run(command("mri"), env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and run.stdout == f"mri is in {tmp_path / 'root' / 'brain-tumor-mri'}\n"
    assert service.asked("storage.test")[-1]["Range"] == f"bytes={kept}-"
    assert not any(secret in run.stderr for secret in SECRETS)


def test_the_command_shows_one_bare_message(service, root, monkeypatch, capfd):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setenv("BRAINLIB_DATA", str(root))
    assert course.main(["data", "kaggle", "mri"]) == 1
    captured = capfd.readouterr()
    assert captured.err.splitlines()[-1].startswith("brainlib: Kaggle asks for a token") and captured.out == ""
    assert course.main(["data", "kaggle", "--archive", "x.zip"]) == 1
    assert "--archive and --version need the name of the data set" in capfd.readouterr().err
