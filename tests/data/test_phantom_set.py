"""The phantom set on disk: layouts, splits, determinism, caching, interruption, failures, and no shortcut."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from brainlib.data.phantom import CLASSES, PhantomSettings, make_phantom, phantom_hash, write
from brainlib.data.phantom.cohort import SURVIVAL, patients, survival
from brainlib.files import DataError
from tests.helpers import mounted, tree

TINY = PhantomSettings.tiny()
#: The smallest set there is, for tests that make several.
SMALL = dataclasses.replace(
    TINY,
    patients_per_class=2,
    leaked_patients=0,
    slices_per_patient=2,
    volumes=1,
    low_grade=0,
    slice_start=80,
    slice_stop=81,
)
BRATS = "brats2020/BraTS2020_training_data/content/data"


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def make(root: Path, **options) -> Path:
    return make_phantom(root, **{"settings": SMALL, "progress": False, "workers": 1} | options)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("small") / "phantom")


# ---- layouts


def test_jpegs_and_their_table(tiny_phantom):
    folder = tiny_phantom / "brain-tumor-mri"
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.jpg"))
    table = rows(folder / "slices.csv")
    assert [row["path"] for row in table] == files
    assert len(files) == 4 * TINY.patients_per_class * TINY.slices_per_patient
    for row in table:
        split, label, name = row["path"].split("/")
        assert label in CLASSES and name.startswith({"Training": "Tr-", "Testing": "Te-"}[split] + label[:2] + "_")
        with Image.open(folder / row["path"]) as image:
            image.load()
            assert image.format == "JPEG" and image.mode == "L" and image.size[0] == image.size[1]
            assert TINY.size_px[0] <= image.size[0] <= TINY.size_px[1]
            pixels = np.asarray(image)
        assert pixels[:3].max() < 60 and 15 < pixels.mean() < 110  # a dark margin around a head
        assert row["plane"] in ("axial", "coronal", "sagittal") and abs(float(row["position_mm"])) < 120
        assert (int(row["tumor_px"]) == 0) if label == "notumor" else int(row["tumor_px"]) >= 0
    assert len({row["plane"] for row in table}) == 3
    # A patient's slices share class, site and size: that is what makes leaks possible.
    for patient in {row["patient"] for row in table}:
        own = [row for row in table if row["patient"] == patient]
        assert len({(row["path"].split("/")[1], row["site"]) for row in own}) == 1


def test_hdf5_slices_and_their_tables(tiny_phantom, repository):
    folder = tiny_phantom / BRATS
    meta = rows(folder / "meta_data.csv")
    assert {row["slice_path"] for row in meta} == {f"/content/data/{p.name}" for p in folder.glob("*.h5")}
    assert len(meta) == TINY.volumes * len(TINY.slices)
    images = {}
    for row in meta:
        name = f"volume_{row['volume']}_slice_{row['slice']}.h5"
        assert row["slice_path"].endswith(name)
        with h5py.File(folder / name) as file:
            image, mask = file["image"][:], file["mask"][:]
        assert image.shape == (240, 240, 4) and image.dtype == np.float64
        assert mask.shape == (240, 240, 3) and mask.dtype == np.uint8 and mask.max() <= 1
        assert mask.sum(-1).max() <= 1  # NCR, ED and ET exclude each other
        assert int(row["target"]) == mask.any()
        images.setdefault(row["volume"], []).append((image, mask))
    for found in images.values():
        volume = np.stack([image for image, _ in found])
        background = volume[:, 0, 0]
        brain = volume[(volume != background[:, None, None]).any(-1)]
        assert np.abs(brain.mean(0)).max() < 0.02 and np.abs(brain.std(0) - 1).max() < 0.02
        mask = np.stack([mask for _, mask in found])
        outside = (volume == background[:, None, None]).all(-1)
        assert not mask[outside].any()
    assert any(row["target"] == "1" for row in meta)


def test_tables_have_the_columns_of_the_real_ones(tiny_phantom, repository):
    expected = {
        "meta_data.csv": "slice_path,target,volume,slice",
        "name_mapping.csv": "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,"
        "BraTS_2019_subject_ID,BraTS_2020_subject_ID",
        "survival_info.csv": "Brats20ID,Age,Survival_days,Extent_of_Resection",
    }
    real = repository.parent / "shared" / "data" / "brats2020"
    for name, columns in expected.items():
        assert (tiny_phantom / BRATS / name).read_text().splitlines()[0] == columns
        if real.is_dir():
            assert (real / name).read_text().splitlines()[0] == columns
    names = rows(tiny_phantom / BRATS / "name_mapping.csv")
    assert Counter(row["Grade"] for row in names) == {"HGG": 1, "LGG": 1}
    lived = rows(tiny_phantom / BRATS / "survival_info.csv")
    assert [row["Brats20ID"] for row in lived] == [r["BraTS_2020_subject_ID"] for r in names if r["Grade"] == "HGG"]
    truth = {row["Brats20ID"]: row for row in rows(tiny_phantom / BRATS / "truth.csv")}
    assert set(truth) == {row["BraTS_2020_subject_ID"] for row in names}
    assert all(float(row["edema_ml"]) > 1 for row in truth.values())


# ---- patients and splits


def test_official_folders_leak_as_the_settings_say():
    settings = PhantomSettings()
    cohort = patients(settings, 0)
    assert len(cohort) >= 120 and [p.number for p in cohort] == list(range(len(cohort)))
    folders = {p.id: Counter(f.split("/")[0] for f in p.files) for p in cohort}
    files = [f for p in cohort for f in p.files]
    assert len(set(files)) == len(files)
    training = sum(c["Training"] for c in folders.values())
    testing = sum(c["Testing"] for c in folders.values())
    assert training >= 800 and testing >= 200
    leaked = sum(c["Testing"] for c in folders.values() if c["Training"])
    assert leaked / testing == pytest.approx(settings.leak) == pytest.approx(1 / 3)
    # Numbers within a class and folder run without gaps and do not follow the patients.
    numbers = sorted(int(f[-8:-4]) for f in files if f.startswith("Training/glioma/"))
    assert numbers == list(range(len(numbers)))
    # Patient numbers do not tell the class: the mean number of each class is near the middle.
    for label in CLASSES:
        mean = np.mean([p.number for p in cohort if p.label == label])
        assert mean == pytest.approx(65.5, abs=4 * 38 / np.sqrt(33))


@pytest.mark.parametrize(
    "wrong",
    [{"leaked_patients": 40}, {"leaked_slices": 8}, {"slice_stop": 156}, {"slice_step": 0}, {"slice_start": 116}],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        dataclasses.replace(PhantomSettings(), **wrong)


def test_survival_follows_its_model():
    settings = PhantomSettings()
    truth = {"core_ml": 20.0, "edema_ml": 30.0}
    people = [survival(n, truth, settings, 0) for n in range(400)]
    residual = np.log([p["days"] / p["expected_days"] for p in people])
    assert residual.std() == pytest.approx(SURVIVAL["noise"], rel=0.15)
    assert residual.mean() == pytest.approx(0, abs=4 * SURVIVAL["noise"] / 20)
    larger = survival(0, {"core_ml": 60.0, "edema_ml": 30.0}, settings, 0)["expected_days"]
    assert larger / people[0]["expected_days"] == pytest.approx(3 ** SURVIVAL["core"])
    assert all(20 <= p["age"] <= 86 and p["resection"] in ("GTR", "STR", "NA") for p in people)


# ---- the same bytes, once


def test_same_bytes_for_one_and_two_workers_and_another_seed_differs(small, tmp_path):
    assert tree(make(tmp_path / "two", workers=2)) == tree(small)
    one, other = small / "brain-tumor-mri", make(tmp_path / "other", seed=1) / "brain-tumor-mri"
    names = [f for p in patients(SMALL, 0) for f in p.files]
    assert all((one / name).read_bytes() != (other / name).read_bytes() for name in names)


def test_second_call_does_nothing(small):
    before = {p: p.stat().st_mtime_ns for p in small.rglob("*")}
    assert make(small) == small
    assert {p: p.stat().st_mtime_ns for p in small.rglob("*")} == before
    mark = json.loads((small / "phantom.json").read_text())
    assert mark["hash"] == phantom_hash(0, SMALL) and mark["summary"]["patients"] == 8


def test_code_settings_and_seed_decide_the_hash(tmp_path, monkeypatch):
    keys = {phantom_hash(0, SMALL), phantom_hash(1, SMALL), phantom_hash(0, TINY)}
    copy = tmp_path / "phantom"
    shutil.copytree(Path(write.__file__).parent, copy)
    monkeypatch.setattr(write, "__file__", str(copy / "write.py"))
    assert phantom_hash(0, SMALL) in keys
    (copy / "signal.py").write_text((copy / "signal.py").read_text().replace("R1, R2 = 4.5", "R1, R2 = 4.6"))
    keys.add(phantom_hash(0, SMALL))
    assert len(keys) == 4


def test_changed_settings_make_it_again_in_place(small, tmp_path):
    root = tmp_path / "phantom"
    shutil.copytree(small, root)
    fewer = dataclasses.replace(SMALL, slices_per_patient=1, leaked_slices=0)
    make(root, settings=fewer)
    assert len(list(root.rglob("*.jpg"))) == 8
    # Neither the old set nor the hidden folder stays.
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock-phantom", "phantom"]


def test_killed_run_resumes_to_the_same_bytes(small, tmp_path):
    """SIGKILL in the middle: nothing is visible as complete; the next call keeps what is done and ends the same."""
    root = tmp_path / "phantom"
    code = (
        "import sys, dataclasses, json; from brainlib.data.phantom import *\n"
        "values = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(sys.argv[2]).items()}\n"
        "make_phantom(sys.argv[1], settings=PhantomSettings(**values), workers=1, progress=False)"
    )
    command = [sys.executable, "-c", code, str(root), json.dumps(dataclasses.asdict(SMALL))]
    child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    done = f".partial-phantom-{phantom_hash(0, SMALL)[:12]}/.state"
    while child.poll() is None and len(list((tmp_path / done).glob("*.json"))) < 3:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL  # it was still at work
    assert not root.exists()
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / done).glob("*.json")}
    assert len(kept) >= 3
    make(root)
    assert tree(root) == tree(small)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock-phantom", "phantom"]


def test_resume_does_not_repeat_finished_patients(tmp_path, monkeypatch):
    calls = []
    original = write.examine

    def counted(patient, settings, seed):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(patient.id)
        return original(patient, settings, seed)

    monkeypatch.setattr(write, "examine", counted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "phantom")
    monkeypatch.setattr(write, "examine", lambda *a: calls.append(a[0].id) or original(*a))
    make(tmp_path / "phantom")
    assert sorted(calls) == sorted(p.id for p in patients(SMALL, 0))


# ---- what can go wrong


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="not a phantom"):
        make(tmp_path)
    assert tree(tmp_path) == {"thesis.txt": b"years of work"}


def test_empty_folder_is_used(small, tmp_path):
    assert tree(make(tmp_path)) == tree(small)


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk_leaves_nothing(tmp_path, workers):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        with pytest.raises(DataError, match="disk is full"):
            make(disk / "phantom", workers=workers)
        assert tree(disk) == {".lock-phantom": b""} and not list(disk.rglob(".partial*"))


def test_read_only_folder_is_explained(tmp_path):
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        with pytest.raises(DataError, match="cannot be written"):
            make(disk / "phantom")


def test_complete_set_on_a_read_only_disk_is_used(small, tmp_path):
    with mounted(tmp_path / "disk", "size=16m") as disk:
        shutil.copytree(small, disk / "phantom")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert make(disk / "phantom") == disk / "phantom"


def test_worker_that_fails_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "_units", lambda seed, settings: ["P9999", "P9998"])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "shadow"))
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "sitecustomize.py").write_text(
        "import sys\nif 'worker' in str(sys.orig_argv): sys.exit('no luck')\n"
    )
    with pytest.raises(DataError, match="worker"):
        make(tmp_path / "phantom", workers=2)
    assert not (tmp_path / "phantom").exists()


# ---- no shortcut


def test_class_cannot_be_told_without_looking_at_the_brain(tmp_path):
    """Border pixels, file size, image size and mean brightness stay near chance, for patients never seen.

    216 pictures of 72 patients, judged out of fold. Chance is 1/4. Slices of a patient are not independent, so the
    bound is that of the number of patients: the 99.9 % quantile of a binomial with 72 draws.
    """
    settings = dataclasses.replace(
        SMALL, patients_per_class=18, slices_per_patient=3, test_patients=4, size_px=(64, 80), volumes=1
    )
    root = make(tmp_path / "phantom", settings=settings, workers=2) / "brain-tumor-mri"
    table = rows(root / "slices.csv")
    features, labels, groups = [], [], []
    for row in table:
        with Image.open(root / row["path"]) as image:
            pixels = np.asarray(image.resize((64, 64)), float)
            size = image.size[0]
        border = np.concatenate(
            [pixels[:3].ravel(), pixels[-3:].ravel(), pixels[:, :3].ravel(), pixels[:, -3:].ravel()]
        )
        summary = [pixels.mean(), size, (root / row["path"]).stat().st_size, border.mean(), border.std()]
        features.append(np.r_[summary, border.reshape(-1, 8).mean(1)])
        labels.append(CLASSES.index(row["path"].split("/")[1]))
        groups.append(row["patient"])
    features, labels = np.array(features), np.array(labels)
    count = len(set(groups))
    bound = binom.ppf(0.999, count, 0.25) / count
    for model in (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1)),
        RandomForestClassifier(60, min_samples_leaf=4, random_state=0),
    ):
        guess = cross_val_predict(model, features, labels, groups=groups, cv=GroupKFold(5))
        assert (guess == labels).mean() < bound
    # The test has teeth: a brightness that differs by class by two standard deviations is found.
    features[:, 0] += 2 * features[:, 0].std() * labels
    guess = cross_val_predict(model, features, labels, groups=groups, cv=GroupKFold(5))
    assert (guess == labels).mean() > bound
