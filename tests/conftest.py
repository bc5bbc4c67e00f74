"""Fixtures for all tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Before torch is imported anywhere: expected numbers and times are those of the CPU, and the GPU may be in use.
if os.environ.get("BRAINLIB_TEST_CUDA") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
USER_DATA = os.environ.get("BRAINLIB_DATA")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of the course."""
    return ROOT


@pytest.fixture(scope="session")
def _session_data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


# For one test at a time, so that chapters executed in the same session keep the data of the user.
@pytest.fixture(autouse=True)
def data_folder(_session_data, monkeypatch) -> Path:
    """An empty data root, the same for the whole session: no test reads or writes the data of the user."""
    monkeypatch.setenv("BRAINLIB_DATA", str(_session_data))
    return _session_data


@pytest.fixture(scope="session")
def tiny_phantom(tmp_path_factory) -> Path:
    """A phantom of a few patients: ``brain-tumor-mri/`` and ``brats2020/`` in one folder."""
    from brainlib.data.phantom import PhantomSettings, make_phantom

    return make_phantom(tmp_path_factory.mktemp("phantom"), settings=PhantomSettings.tiny(), progress=False)


@pytest.fixture(scope="session")
def real_mri() -> Path:
    """The real Brain Tumor MRI set: the folder with ``Training`` and ``Testing``; skips the test without it."""
    if USER_DATA and (Path(USER_DATA) / "brain-tumor-mri").is_dir():
        return Path(USER_DATA) / "brain-tumor-mri"
    target = ROOT / ".work" / "real" / "brain-tumor-mri"
    if not (target / "Testing" / "pituitary").is_dir():
        if not (SHARED / "brain-tumor-mri.tar").is_file():
            pytest.skip("the real Brain Tumor MRI set is not on this machine")
        unpacked = target.with_name(f"unpacking-{os.getpid()}")  # several processes may test at the same time
        script = [sys.executable, str(SHARED / "unpack.py"), "brain-tumor-mri", str(unpacked)]
        subprocess.run(script, check=True, capture_output=True)
        try:
            unpacked.rename(target)
        except OSError:  # another was faster
            shutil.rmtree(unpacked)
    return target


@pytest.fixture(scope="session")
def figshare() -> Path:
    """The folder with the published outlines of the figshare set; skips the test without it."""
    if not (SHARED / "figshare" / "borders.csv").is_file():
        pytest.skip("the outlines of the figshare set are not on this machine")
    return SHARED / "figshare"


@pytest.fixture(scope="module")
def one_thread():
    """One thread for the tests of a module whose tasks are tiny: more would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
