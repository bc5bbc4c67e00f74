"""What ``brainlib data check`` says about complete, damaged, badly placed and missing data, and the sheets it draws."""

import shutil
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from brainlib import course, datacheck
from brainlib.data.kaggle import SETS, walk
from brainlib.datacheck import check_data


def small(monkeypatch, **expected):
    """Let the real sets be small ones: two slices of each class, two patients of three slices."""
    mri = replace(SETS["mri"], expected=dict.fromkeys(SETS["mri"].expected, 2))
    tables = {key: 1 for key in SETS["brats"].expected if key.endswith(".csv")}
    brats = replace(SETS["brats"], expected={"volume_1": 3, "volume_2": 3, **tables})
    monkeypatch.setitem(SETS, "mri", mri)
    monkeypatch.setitem(SETS, "brats", brats)


def write_slices(folder, skip=()):
    for key in SETS["mri"].expected:
        (folder / key).mkdir(parents=True, exist_ok=True)
        for i in range(2):
            if (key, i) not in skip:
                Image.fromarray(np.full((20, 20), 40 * i + 9, np.uint8)).save(folder / key / f"{i}.jpg")


def write_volumes(folder, skip=()):
    h5py = pytest.importorskip("h5py")
    folder.mkdir(parents=True, exist_ok=True)
    for volume in (1, 2):
        for z in range(3):
            if (volume, z) not in skip:
                with h5py.File(folder / f"volume_{volume}_slice_{z}.h5", "w") as file:
                    file["image"] = np.random.default_rng(z).normal(size=(24, 24, 4))
                    file["mask"] = np.eye(24, dtype=np.uint8)[..., None] * np.array([1, 0, 0], np.uint8)
    for name in ("meta_data.csv", "name_mapping.csv", "survival_info.csv"):
        (folder / name).write_text("a\n")


def finding(root, name, **options):
    options.setdefault("pictures", False)
    return next(f for f in check_data(root, **options) if f.name == name)


def test_nothing_is_there(tmp_path):
    findings = check_data(tmp_path)
    assert [f.state for f in findings] == ["absent"] * 4 and not (tmp_path / "check").exists()
    assert all("make it with 'brainlib data phantom'" in f.text for f in findings[:2])
    assert "'brainlib data kaggle mri' downloads it; or download https://www.kaggle.com/datasets/" in findings[2].text
    assert str(tmp_path / "brats2020") in findings[3].text


def test_the_phantom_is_complete_and_drawn(tiny_phantom, tmp_path):
    (tmp_path / "phantom").symlink_to(tiny_phantom)
    slices, volumes, *rest = check_data(tmp_path)
    assert slices.state == volumes.state == "complete" and {f.state for f in rest} == {"absent"}
    for found in (slices, volumes):
        with Image.open(found.sheet) as picture:
            assert picture.width > 600 and np.asarray(picture.convert("L")).std() > 30


def test_half_a_phantom(tiny_phantom, tmp_path):
    shutil.copytree(tiny_phantom, tmp_path / "phantom")
    next((tmp_path / "phantom" / "brain-tumor-mri" / "Testing" / "glioma").glob("*.jpg")).unlink()
    found = finding(tmp_path, "phantom slices")
    assert (
        found.state == "incomplete" and "found: Testing/glioma" in found.text and "brainlib data phantom" in found.text
    )
    (tmp_path / "phantom" / "phantom.json").unlink()
    assert finding(tmp_path, "phantom volumes").state == "incomplete"


@pytest.mark.parametrize("nesting", ["", "archive", "brain-tumor-mri-dataset", "archive/brain-tumor-mri-dataset"])
def test_slices_at_the_nestings_people_have(tmp_path, monkeypatch, nesting):
    small(monkeypatch)
    write_slices(tmp_path / "brain-tumor-mri" / nesting)
    found = finding(tmp_path, "brain-tumor-mri", pictures=True)
    assert found.state == "complete" and "16 of 16 files" in found.text and found.sheet.is_file()


@pytest.mark.parametrize(
    "nesting", ["", "BraTS2020_training_data/content/data", "archive/BraTS2020_training_data/content/data", "a/a"]
)
def test_volumes_at_the_nestings_people_have(tmp_path, monkeypatch, nesting):
    small(monkeypatch)
    write_volumes(tmp_path / "brats2020" / nesting)
    found = finding(tmp_path, "brats2020", pictures=True)
    assert found.state == "complete" and "2 patients, 9 of 9 files" in found.text and found.sheet.is_file()


def test_what_is_missing_is_named_by_class_and_by_patient(tmp_path, monkeypatch):
    small(monkeypatch)
    write_slices(tmp_path / "brain-tumor-mri", skip={("Testing/notumor", 1)})
    write_volumes(tmp_path / "brats2020", skip={(1, 0), (2, 0), (2, 1), (2, 2)})
    found = finding(tmp_path, "brain-tumor-mri")
    assert found.state == "incomplete" and "found: Testing/notumor 1 of 2" in found.text
    assert "'brainlib data kaggle mri --force' makes it anew" in found.text
    found = finding(tmp_path, "brats2020", pictures=True)
    assert found.state == "incomplete" and "missing: volume_2; found: volume_1 2 of 3" in found.text


def test_nifti_patients_are_counted_by_their_five_files(tmp_path, monkeypatch):
    small(monkeypatch)
    monkeypatch.setattr(datacheck, "NIFTI", replace(datacheck.NIFTI, expected={"BraTS20_Training_001": 5}))
    folder = tmp_path / "brats2020" / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_001"
    folder.mkdir(parents=True)
    for kind in ("flair", "t1", "t1ce", "t2"):
        (folder / f"BraTS20_Training_001_{kind}.nii.gz").touch()
    found = finding(tmp_path, "brats2020")
    assert found.state == "incomplete" and "found: BraTS20_Training_001 4 of 5" in found.text
    (folder / "BraTS20_Training_001_seg.nii").touch()
    found = finding(tmp_path, "brats2020", pictures=True)  # empty files: counted as there, drawn as unreadable
    assert found.state == "complete" and "1 patients, 5 of 5 files" in found.text and found.sheet.is_file()


def test_two_sets_in_one_folder_are_not_called_complete(tmp_path, monkeypatch):
    small(monkeypatch)
    write_volumes(tmp_path / "brats2020" / "one")
    write_volumes(tmp_path / "brats2020" / "two")
    found = finding(tmp_path, "brats2020")
    assert found.state == "incomplete" and "more than one set" in found.text


def test_an_archive_that_was_not_unpacked_is_named(tmp_path, monkeypatch, capsys):
    small(monkeypatch)
    folder = tmp_path / "brain-tumor-mri"
    folder.mkdir()
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("Training/glioma/1.jpg", b"")
    (folder / "half.zip").write_bytes(b"PK")
    found = finding(tmp_path, "brain-tumor-mri")
    assert found.state == "incomplete" and "is not unpacked" in found.text
    assert f"brainlib data kaggle mri --archive {folder / 'archive.zip'} --force" in found.text
    assert f"{folder / 'half.zip'} is not a complete zip file" in found.text
    shutil.copy(folder / "archive.zip", tmp_path / "archive.zip")
    shutil.rmtree(folder)
    found = finding(tmp_path, "brain-tumor-mri")
    assert found.state == "absent" and f"--archive {tmp_path / 'archive.zip'}'" in found.text
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path))
    assert course.main(["data", "check"]) == 0


def test_a_folder_beside_the_right_one_and_a_broken_download_are_named(tmp_path, monkeypatch):
    small(monkeypatch)
    write_slices(tmp_path / "archive")
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "awsaf49-brats2020-training-data.zip.part").write_bytes(b"x" * 2_500_000)
    assert "archive holds it: rename that folder to brain-tumor-mri" in finding(tmp_path, "brain-tumor-mri").text
    assert "2.5 MB of it are downloaded; the same command goes on" in finding(tmp_path, "brats2020").text


def test_more_files_than_expected_are_said(tmp_path, monkeypatch):
    small(monkeypatch)
    write_slices(tmp_path / "brain-tumor-mri")
    (tmp_path / "brain-tumor-mri" / "Training" / "glioma" / "mine.jpg").touch()
    found = finding(tmp_path, "brain-tumor-mri")
    assert found.state == "complete" and "more than expected: Training/glioma 3 of 2" in found.text


def test_damaged_pictures_and_a_folder_that_cannot_be_drawn(tmp_path, monkeypatch):
    small(monkeypatch)
    write_slices(tmp_path / "brain-tumor-mri")
    (tmp_path / "brain-tumor-mri" / "Training" / "glioma" / "0.jpg").write_bytes(b"no picture")
    assert finding(tmp_path, "brain-tumor-mri", pictures=True).sheet.is_file()
    shutil.rmtree(tmp_path / "check")
    (tmp_path / "check").write_text("a file where the folder should be")
    found = finding(tmp_path, "brain-tumor-mri", pictures=True)
    assert found.state == "complete" and found.sheet is None and "no picture: cannot write" in found.text


def test_many_names_are_counted_fast():
    names = [
        f"BraTS2020_training_data/content/data/{key}_slice_{z}.h5" for key in SETS["brats"].expected for z in range(155)
    ]
    start = time.process_time()
    found = SETS["brats"].tally(names)
    assert time.process_time() - start < 2
    assert found["volume_369"] == 155


def test_walking_leaves_hidden_folders_out_and_ends_in_a_loop_of_links(tmp_path):
    for name in ("a/x.jpg", ".hidden/x.jpg", "__MACOSX/x.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    names = list(walk(tmp_path, depth=4))
    assert "a/x.jpg" in names and "a/loop/a/x.jpg" in names and not any("hidden" in n or "MACOSX" in n for n in names)
    assert max(name.count("/") for name in names) <= 4
