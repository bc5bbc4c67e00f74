"""Volumes of BraTS that cannot be used: each patient is named with its reason, and none is dropped silently."""

import gzip
import shutil
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec

from brainlib.data.brats import load_brats
from brainlib.data.brats.dataset import _load
from brainlib.files import DataError
from tests.data.brats_files import AFFINE, SHAPE, make_volume, write_hdf5, write_nifti

GOOD, BAD = "BraTS20_Training_001", "BraTS20_Training_002"


def load(root: Path, **named):
    return _load(root, **{"shape": SHAPE, "workers": 1, **named})


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "root"))


def resave(path: Path, change=lambda values: values, affine=AFFINE) -> None:
    image = nib.Nifti1Image(change(nib.load(path).get_fdata(dtype=np.float32)), affine)
    path.write_bytes(image.to_bytes() if path.suffix == ".nii" else gzip.compress(image.to_bytes()))


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def put(value: float, where=(12, 10, 5)):
    def change(values: np.ndarray) -> np.ndarray:
        values[where] = value
        return values

    return change


tilt = np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]])
NIFTI = {
    "missing modality": ("t1ce", lambda p: p.unlink(), "missing: t1ce"),
    "missing mask": ("seg", lambda p: p.unlink(), "missing: seg"),
    "cut short": ("t2", lambda p: p.write_bytes(p.read_bytes()[:-500]), "_t2.nii.gz: cannot be read"),
    "empty file": ("t1", lambda p: p.write_bytes(b""), "_t1.nii.gz: cannot be read"),
    "not NIfTI": ("t1", lambda p: p.write_text("<html>sign in first</html>" * 50), "_t1.nii.gz: cannot be read"),
    "a bit flipped": ("flair", flip_bit, "_flair.nii.gz: cannot be read"),
    "dead link": ("t1", lambda p: (p.unlink(), p.symlink_to("nowhere")), "_t1.nii.gz: No such file"),
    "shape": ("t1", lambda p: resave(p, lambda v: v[:-1]), "_t1.nii.gz: shape 23 x 20 x 10; expected 24 x 20 x 10"),
    "four axes": ("t1", lambda p: resave(p, lambda v: v[..., None]), "shape 24 x 20 x 10 x 1, spacing"),
    "NaN": ("t1", lambda p: resave(p, put(np.nan)), "_t1.nii.gz: holds values that are not finite"),
    "infinity": ("t1", lambda p: resave(p, put(np.inf)), "_t1.nii.gz: holds values that are not finite"),
    "spacing": ("t1", lambda p: resave(p, affine=AFFINE @ np.diag([1, 1, 2, 1])), "spacing 1 x 1 x 2 mm; expected"),
    "oblique": ("t1", lambda p: resave(p, affine=from_matvec(tilt @ AFFINE[:3, :3])), "oblique by 5.7 degrees"),
    "no orientation": ("t1", lambda p: resave(p, affine=None), "does not say how the volume lies"),
    "other grid": (
        "t1",
        lambda p: resave(p, affine=from_matvec(AFFINE[:3, :3], [5, 0, 0])),
        "t1 and mask lie on different grids: corners (5, 0, 0) mm and (0, 239, 0) mm",
    ),
    "label 5": ("seg", lambda p: resave(p, put(5)), "mask holds label 5; expected 0, 1, 2, 4"),
    "label half": ("seg", lambda p: resave(p, put(0.5)), "mask holds label 0.5"),
    "label 3 and 4": ("seg", lambda p: resave(p, put(3)), "mask holds label 3; expected 0, 1, 2, 4"),
    "no brain": ("t2", lambda p: resave(p, np.zeros_like), "T2: no brain"),
    "negative": ("t2", lambda p: resave(p, lambda v: -v), "T2: no brain: nothing is brighter"),
}


@pytest.mark.parametrize("kind", NIFTI)
def test_damaged_nifti(tmp_path, kind):
    name, break_, reason = NIFTI[kind]
    for id in (GOOD, BAD):
        write_nifti(tmp_path / "set", id, make_volume())
    break_(tmp_path / "set" / BAD / f"{BAD}_{name}.nii.gz")
    check(tmp_path / "set", reason)


def check(root: Path, reason: str) -> None:
    """Refused with the patient and the reason; left out, warned about and recorded where that is wanted."""
    with pytest.raises(DataError) as error:
        load(root)
    told = str(error.value)
    assert "1 of 2 patients" in told and f"{BAD}: " in told and reason in told and 'damaged="skip"' in told
    with pytest.warns(UserWarning, match=BAD):
        data = load(root, damaged="skip")
    assert data.ids == (GOOD,) and reason in data.skipped[BAD] and data.volume(GOOD).labels.any()
    with pytest.raises(DataError, match="was left out"):
        data.volume(BAD)


def change(key: str, edit):
    """Edit one array of an HDF5 slice; ``edit`` gives the new one, or None to leave it out."""

    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            values = edit(file[key][()])
            del file[key]
            if values is not None:
                file[key] = values

    return apply


def overlap(mask: np.ndarray) -> np.ndarray:
    mask[10, 10] = 1
    return mask


HDF5 = {
    "missing slice": (lambda p: p.unlink(), "missing slices: 4"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:3000]), "volume_2_slice_4.h5: cannot be read"),
    "empty file": (lambda p: p.write_bytes(b""), "volume_2_slice_4.h5: cannot be read"),
    "no mask": (change("mask", lambda v: None), "volume_2_slice_4.h5: cannot be read"),
    "shape": (change("image", lambda v: v[:-1]), "image 23 x 20 x 4, mask 24 x 20 x 3; expected 24 x 20 x 4 and 3"),
    "channels": (change("image", lambda v: v[..., :3]), "image 24 x 20 x 3"),
    "NaN": (change("image", put(np.nan, (12, 10, 1))), "volume_2_slice_4.h5: holds values that are not finite"),
    "mask of 255": (change("mask", lambda v: v * 255), "are not 0 or 1, or overlap"),
    "overlap": (change("mask", overlap), "are not 0 or 1, or overlap"),
    "no background": (
        change("image", lambda v: np.random.default_rng(0).normal(size=v.shape)),
        "volume_2_slice_4.h5: no constant background",
    ),
}


@pytest.mark.parametrize("kind", HDF5)
def test_damaged_hdf5(tmp_path, kind):
    break_, reason = HDF5[kind]
    for number in (1, 2):
        write_hdf5(tmp_path / "set", number, make_volume())
    break_(tmp_path / "set" / "volume_2_slice_4.h5")
    check(tmp_path / "set", reason)


def test_slices_that_the_table_lists_must_be_there(tmp_path):
    for number in (1, 2):
        write_hdf5(tmp_path / "set", number, make_volume(), z=[2, 3, 5, 6])
    rows = [f"/content/data/volume_{n}_slice_{z}.h5,0,{n},{z}" for n, last in ((1, 4), (2, 10)) for z in range(last)]
    assert len(load(tmp_path / "set")) == 2  # without the table nothing speaks for slice 4
    (tmp_path / "set" / "meta_data.csv").write_text("slice_path,target,volume,slice\n" + "\n".join(rows) + "\n")
    check(tmp_path / "set", "missing slices: 4")


def test_slice_numbers_beyond_the_volume(tmp_path):
    write_hdf5(tmp_path / "set", 1, make_volume())
    shutil.copy(tmp_path / "set" / "volume_1_slice_9.h5", tmp_path / "set" / "volume_1_slice_10.h5")
    with pytest.raises(DataError, match="slices 10: a volume has slices 0 to 9"):
        load(tmp_path / "set")


def test_all_damaged_patients_are_in_one_report_and_none_left_is_refused(tmp_path):
    for id in (GOOD, BAD):
        folder = write_nifti(tmp_path / "set", id, make_volume())
        (folder / f"{id}_t1.nii.gz").unlink()
    for damaged in ("refuse", "skip"):
        with pytest.raises(DataError, match=f"(?s)2 of 2 patients.*{GOOD}: missing: t1.*{BAD}: missing: t1"):
            load(tmp_path / "set", damaged=damaged)


def test_patient_in_two_folders(tmp_path):
    for folder in ("a", "b"):
        write_nifti(tmp_path / "set" / folder, GOOD, make_volume(), ".nii")
    with pytest.raises(DataError, match=f"{GOOD}: two copies, in .*remove one"):
        load(tmp_path / "set")


def test_label_3_needs_a_choice(tmp_path):
    images, labels = make_volume()
    write_nifti(tmp_path / "set", GOOD, (images, np.where(labels == 4, 3, labels)), ".nii")
    with pytest.raises(DataError, match='label 3: BraTS 2020 calls enhancing tumor 4.*label_3="ET"'):
        load(tmp_path / "set")
    volume = load(tmp_path / "set", label_3="ET").volume(GOOD)
    assert np.array_equal(volume.labels, labels.transpose(2, 0, 1))


def test_public_loader_demands_the_size_of_brats(tmp_path):
    write_nifti(tmp_path / "set", GOOD, make_volume(), ".nii")
    with pytest.raises(DataError, match="shape 24 x 20 x 10; expected 240 x 240 x 155"):
        load_brats(tmp_path / "set", workers=1)


def test_slices_standardized_one_by_one_are_noted(tmp_path):
    write_hdf5(tmp_path / "set", 1, make_volume())
    change("image", lambda v: v * 2)(tmp_path / "set" / "volume_1_slice_4.h5")
    assert "each slice was standardized by itself" in load(tmp_path / "set").notes[0]


def test_background_does_not_depend_on_the_scale(tmp_path):
    write_hdf5(tmp_path / "a", 1, make_volume())
    write_hdf5(tmp_path / "b", 1, make_volume())
    for path in (tmp_path / "b").iterdir():
        change("image", lambda v: v * 8 + 64)(path)
    first, second = (load(tmp_path / name).volume(GOOD) for name in "ab")
    assert np.abs(first.images.astype(int) - second.images).max() <= 1
    assert np.array_equal(first.images == 0, second.images == 0) and np.allclose(second.scale, 8 * first.scale)
