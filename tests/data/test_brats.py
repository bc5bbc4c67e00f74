"""Volumes of BraTS: both formats, the store, the tables, batches, and what a model is given."""

import itertools
import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from brainlib.data import brats
from brainlib.data.brats import MODALITIES, REGIONS, find_brats, load_brats, min_max, region_masks, standardize
from brainlib.data.brats.dataset import _load
from brainlib.data.brats.layout import list_sources, ranges
from brainlib.data.brats.physics import identify
from brainlib.data.brats.store import Options, attempt, quantize
from brainlib.data.brats.tables import parse_survival, read_patients
from brainlib.files import DataError
from tests.conftest import SHARED
from tests.data.brats_files import AFFINE, SHAPE, make_volume, write_hdf5, write_nifti
from tests.helpers import mounted

IDS = [f"BraTS20_Training_{n:03d}" for n in (1, 2, 3)]


def load(root: Path, **named):
    return _load(root, **{"shape": SHAPE, "workers": 1, **named})


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch) -> Path:
    """A data root for each test: here the stores are what is tested."""
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


@pytest.fixture
def nifti(tmp_path) -> Path:
    """Three patients as NIfTI, with the tables."""
    for seed, id in enumerate(IDS):
        write_nifti(tmp_path / "nifti", id, make_volume(seed), ".nii")
    (tmp_path / "nifti" / "name_mapping.csv").write_text(
        "Grade,BraTS_2019_subject_ID,BraTS_2020_subject_ID\n"
        + "".join(f"{grade},NA,{id}\n" for grade, id in zip(("HGG", "LGG", "HGG"), IDS, strict=True))
    )
    (tmp_path / "nifti" / "survival_info.csv").write_text(
        "Brats20ID,Age,Survival_days,Extent_of_Resection\n"
        f"{IDS[0]},60.463,289,GTR\n{IDS[2]},52.0,ALIVE (361 days later),NA\n"
    )
    return tmp_path / "nifti"


@pytest.fixture(scope="session")
def real_brats(tmp_path_factory) -> Path:
    """Three real patients of BraTS 2020 as NIfTI: one plain, one whose FLAIR is cut, one low grade without ET."""
    if not (SHARED / "unpack.py").is_file():
        pytest.skip("the real BraTS volumes are not on this machine")
    target = tmp_path_factory.mktemp("brats")
    script = [sys.executable, str(SHARED / "unpack.py"), "brats2020", str(target), "--patients", "7,135,313"]
    subprocess.run(script, check=True, capture_output=True)
    return target


# ---- from files to the store


def test_nifti_round_trip(nifti):
    data = load(nifti)
    assert data.ids == tuple(IDS) and len(data) == 3 and "3 patients, 30 slices; HGG 2, LGG 1" in repr(data)
    for seed, id in enumerate(IDS):
        images, labels = make_volume(seed)
        volume = data.volume(id)
        assert volume.images.shape == (10, 4, 24, 20) and volume.images.dtype == np.uint8
        assert np.array_equal(volume.labels, labels.transpose(2, 0, 1)) and volume.z.tolist() == list(range(10))
        truth = images.transpose(2, 3, 0, 1).astype(float)
        scale = volume.scale[:, None, None]
        assert np.array_equal(volume.images == 0, truth == 0)
        top = np.array([np.percentile(c[c > 0], 99.9) for c in truth.swapaxes(0, 1)])
        assert np.allclose(volume.scale * 255, top)
        away = np.abs(volume.images * scale - np.minimum(truth, top[:, None, None]))
        assert (away[volume.images > 1] <= 0.501 * scale.max()).all()


def test_volumes_are_read_only_views_of_the_file(nifti):
    data = load(nifti)
    volume = data.volume(IDS[0])
    assert np.shares_memory(volume.images, data.volume(IDS[0]).images)
    assert np.shares_memory(volume.images, data._records(IDS[0])) and not volume.images.flags.writeable
    assert isinstance(data._records(IDS[0]).base, np.memmap)
    with pytest.raises(DataError, match="no patient 'BraTS20_Training_999'"):
        data.volume("BraTS20_Training_999")


def test_both_formats_give_the_same_arrays(nifti, tmp_path):
    for number in (1, 2, 3):
        write_hdf5(tmp_path / "h5", number, make_volume(number - 1))
    for name in ("name_mapping.csv", "survival_info.csv"):
        shutil.copy(nifti / name, tmp_path / "h5" / name)
    first, second = load(nifti), load(tmp_path / "h5")
    assert first.patients == second.patients and first.table() == second.table()
    for id in IDS:
        a, b = first.volume(id), second.volume(id)
        assert np.array_equal(a.labels, b.labels) and np.array_equal(a.images == 0, b.images == 0)
        assert np.abs(a.images.astype(int) - b.images).max() <= 1
        assert np.allclose(a.mean, b.mean, rtol=1e-3) and np.allclose(a.std, b.std, rtol=1e-3)
    assert first.fingerprint != second.fingerprint != ""


def test_statistics_are_those_of_the_brain(nifti):
    volume = load(nifti).volume(IDS[1])
    for channel in range(4):
        brain = volume.images[:, channel][volume.images[:, channel] > 0].astype(float)
        assert np.isclose(volume.mean[channel], brain.mean()) and np.isclose(volume.std[channel], brain.std())


@settings(max_examples=50, deadline=None)
@given(
    values=hnp.arrays(np.float32, (4, 5, 3), elements=st.floats(1, 1000, width=32)),
    mask=hnp.arrays(bool, (4, 5, 3)),
    factor=st.floats(1e-3, 1e3),
)
def test_quantized_bytes_keep_background_order_and_do_not_depend_on_scale(values, mask, factor):
    mask[0, 0, 0] = True
    values = values * mask
    bytes_, scale = quantize(values)
    assert np.array_equal(bytes_ == 0, values == 0) and bytes_.max() == 255
    ordered = bytes_.ravel()[np.argsort(values.ravel(), kind="stable")].astype(int)
    assert (np.diff(ordered) >= 0).all()
    again, larger = quantize((values * factor).astype(np.float32))
    assert np.abs(again.astype(int) - bytes_).max() <= 1 and np.isclose(larger, scale * factor, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_both_suffixes_and_a_compressed_file_with_the_plain_one(tmp_path, suffix):
    folder = write_nifti(tmp_path / "set", IDS[0], make_volume(), ".nii.gz")
    if suffix == ".nii":
        for path in folder.iterdir():
            path.rename(path.with_suffix(""))
    assert np.array_equal(load(tmp_path / "set").volume(IDS[0]).labels, make_volume()[1].transpose(2, 0, 1))


def test_nestings_that_people_have(tmp_path):
    root = tmp_path / "brats"
    training = root / "BraTS2020_TrainingData" / "MICCAI_BraTS2020_TrainingData"
    for id in IDS[:2]:
        write_nifti(training, id, make_volume(), ".nii")
    validation = root / "BraTS2020_ValidationData" / "MICCAI_BraTS2020_ValidationData"
    write_nifti(validation, "BraTS20_Validation_001", make_volume(), ".nii")
    (training / IDS[0] / f"._{IDS[0]}_flair.nii").write_bytes(b"rubbish of a Mac")
    assert find_brats(root) == training and load(root).ids == tuple(IDS[:2])
    assert load(training / IDS[0]).ids == (IDS[0],)

    content = tmp_path / "kaggle" / "archive" / "BraTS2020_training_data" / "content" / "data"
    write_hdf5(content, 1, make_volume())
    assert find_brats(tmp_path / "kaggle") == content and load(tmp_path / "kaggle").ids == (IDS[0],)

    old = tmp_path / "by_grade"
    write_nifti(old / "HGG", "Brats18_A_1", make_volume(), ".nii")
    write_nifti(old / "LGG", "Brats18_B_1", make_volume(), ".nii")
    assert load(old).ids == ("Brats18_A_1", "Brats18_B_1")


def test_find_brats_says_what_is_missing_or_ambiguous(tmp_path, nifti):
    with pytest.raises(DataError, match="no such folder"):
        load_brats(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither NIfTI files"):
        load_brats(tmp_path / "empty")
    write_hdf5(tmp_path / "h5", 1, make_volume())
    with pytest.raises(DataError, match="more than one set"):
        find_brats(tmp_path)


def test_misnamed_mask_of_patient_355(tmp_path):
    id = "BraTS20_Training_355"
    folder = write_nifti(tmp_path / "set", id, make_volume(), ".nii")
    (folder / f"{id}_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
    data = load(tmp_path / "set")
    assert np.array_equal(data.volume(id).labels, make_volume()[1].transpose(2, 0, 1))
    assert data.notes[0] == f"{id}: mask read from W39_1998.09.19_Segm.nii"


ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(ORIENTATIONS))
def test_flipped_and_exchanged_axes_are_undone(tmp_path_factory, orientation):
    axes, signs = orientation
    tmp_path = tmp_path_factory.mktemp("turned")
    images, labels = make_volume()
    turn = np.array([[axis, sign] for axis, sign in zip(axes, signs, strict=True)], float)
    affine = AFFINE @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    turned = np.stack([nib.apply_orientation(images[..., c], turn) for c in range(4)], -1)
    write_nifti(tmp_path / "plain", IDS[0], (images, labels), ".nii")
    write_nifti(tmp_path / "turned", IDS[0], (turned, nib.apply_orientation(labels, turn)), ".nii", affine)
    for source, target in (("plain", "a.npy"), ("turned", "b.npy")):
        (found,) = list_sources(tmp_path / source)
        assert isinstance(attempt(found, tmp_path / target, Options(SHAPE)), dict)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


# ---- the store: parallel, resumed, renewed


def test_parallel_conversion_gives_the_same_store_and_report(nifti, tmp_path, monkeypatch):
    alone = load(nifti)
    write_nifti(nifti, "P_4", make_volume(), ".nii")
    (nifti / "P_4" / "P_4_t2.nii").write_bytes(b"short")
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "other"))
    with pytest.warns(UserWarning, match=r"1 of 4 patients(?s:.*)P_4: P_4_t2.nii: cannot be read"):
        together = load(nifti, workers=2, damaged="skip")
    assert together.store != alone.store and together.fingerprint == alone.fingerprint
    for path in alone.store.glob("*.npy"):
        assert path.read_bytes() == (together.store / path.name).read_bytes()


def test_progress_is_a_plain_bar(nifti, capsys):
    load(nifti, progress=True)
    assert "converting" in capsys.readouterr().out


def test_second_load_reads_no_source_and_renews_only_what_changed(nifti):
    store = load(nifti).store
    before = {path.name: path.stat().st_mtime_ns for path in store.glob("*.npy")}
    fingerprint = load(nifti).fingerprint
    assert {path.name: path.stat().st_mtime_ns for path in store.glob("*.npy")} == before

    write_nifti(nifti, IDS[1], make_volume(7), ".nii")
    data = load(nifti)
    after = {path.name: path.stat().st_mtime_ns for path in store.glob("*.npy")}
    assert len(after) == 3 and len(set(before.items()) & set(after.items())) == 2
    assert data.fingerprint != fingerprint
    assert np.array_equal(data.volume(IDS[1]).labels, make_volume(7)[1].transpose(2, 0, 1))


@pytest.mark.parametrize("break_", ["cut", "facts"])
def test_damaged_store_is_made_again(nifti, break_):
    store, fingerprint = load(nifti).store, load(nifti).fingerprint
    if break_ == "cut":
        path = next(store.glob("*.npy"))
        path.write_bytes(path.read_bytes()[:1000])
    else:
        next(store.glob("*.json")).write_text("{")
    again = load(nifti)
    assert again.fingerprint == fingerprint and again.volume(IDS[0]).images.shape[0] == 10


def test_store_takes_no_room_for_empty_rows(tmp_path):
    images, labels = make_volume(shape=(240, 240, 4))
    images[:80], images[160:], labels[:80], labels[160:] = 0, 0, 0, 0
    labels[100, 100, 2] = 4
    write_nifti(tmp_path / "set", IDS[0], (images, labels), ".nii")
    path = next(load(tmp_path / "set", shape=(240, 240, 4)).store.glob("*.npy"))
    with open(tmp_path / "probe", "wb") as file:
        file.truncate(1 << 20)
    if (tmp_path / "probe").stat().st_blocks:
        pytest.skip("this file system does not know sparse files")
    assert path.stat().st_blocks * 512 < 0.3 * path.stat().st_size


CONVERT = """
import sys
from brainlib.data.brats.dataset import _load
_load(sys.argv[1], shape=tuple(map(int, sys.argv[2].split(","))), workers=int(sys.argv[3]))
"""


def start(root: Path, shape: tuple[int, ...], workers: int = 1) -> subprocess.Popen:
    command = [sys.executable, "-c", CONVERT, str(root), ",".join(map(str, shape)), str(workers)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_killed_conversion_goes_on(tmp_path, own_root):
    shape = (96, 96, 60)
    first = write_nifti(tmp_path / "set", "P_000", make_volume(shape=shape), ".nii")
    for n in range(1, 12):  # the same patient many times: quick to write
        folder = tmp_path / "set" / f"P_{n:03d}"
        folder.mkdir()
        for path in first.iterdir():
            os.link(path, folder / path.name.replace("P_000", folder.name))
    child = start(tmp_path / "set", shape)
    deadline = time.monotonic() + 60
    while len(done := list(own_root.rglob("[!.]*.json"))) < 2 and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.005)
    child.kill()
    assert child.wait() == -9 and 2 <= len(done) < 12
    times = {path: path.stat().st_mtime_ns for path in own_root.rglob("[!.]*.json")}
    (done[0].parent / f".{done[0].stem}-abcdefgh.npy").write_bytes(b"left by the killed process")

    data = load(tmp_path / "set", shape=shape)
    assert len(data) == 12 and all(path.stat().st_mtime_ns == then for path, then in times.items())
    assert len({data._facts(id)[1]["sha256"] for id in data.ids}) == 1
    assert (
        sorted(path.suffix for path in data.store.iterdir() if path.name != ".lock") == [".json"] * 12 + [".npy"] * 12
    )


def test_memory_does_not_grow_with_the_number_of_patients(tmp_path):
    shape = (128, 128, 80)  # 6.5 MB for each patient in the store
    script = CONVERT + "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    first = write_nifti(tmp_path / "3", "P_000", make_volume(shape=shape), ".nii")
    peaks = []
    for count in (3, 9):
        for n in range(count):
            folder = tmp_path / str(count) / f"P_{n:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            for path in first.iterdir() if folder != first else ():
                os.link(path, folder / path.name.replace("P_000", folder.name))
        command = [sys.executable, "-c", script, str(tmp_path / str(count)), ",".join(map(str, shape)), "1"]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] - peaks[0] < 12, peaks  # six patients more would be 39 MB


def test_dead_worker_is_explained(nifti, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(DataError, match="was stopped"):
        load(nifti, workers=2)


def test_full_disk_is_explained(nifti, tmp_path, monkeypatch):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        monkeypatch.setenv("BRAINLIB_DATA", str(disk))
        with pytest.raises(DataError, match="disk is full"):
            load(nifti)
        with pytest.raises(DataError, match="disk is full"):
            load(nifti, workers=2)
        assert not list(disk.rglob("*-????????.npy"))


# ---- patients and tables


def test_patient_table(nifti):
    data = load(nifti)
    first, second, third = data.patients
    assert (first.number, first.grade, first.age, first.survival_days, first.censored, first.resection) == (
        (1, "HGG", 60.463, 289, False, "GTR")
    )
    assert (second.grade, second.age, second.survival_days, second.censored) == ("LGG", None, None, None)
    assert (third.survival_days, third.censored, third.resection) == (361, True, None)
    labels = make_volume()[1]
    row = data.table()[0]
    assert (row["id"], row["NCR_ml"], row["ET_ml"]) == (IDS[0], (labels == 1).sum() / 1000, (labels == 4).sum() / 1000)


@given(st.integers(0, 10_000))
def test_survival_is_parsed_with_censoring(days):
    assert parse_survival(f" {days} ") == (days, False)
    assert parse_survival(f"ALIVE ({days} days later)") == (days, True)
    assert parse_survival("NA") == (None, None)


def test_malformed_rows_are_named(nifti):
    with (nifti / "survival_info.csv").open("a") as file:
        file.write(f"{IDS[1]},old,soon,PARTIAL\n{IDS[0]},1,1,GTR\n,1,1,GTR\n")
    with pytest.raises(DataError) as error:
        load(nifti)
    told = str(error.value)
    assert f"line 4 ({IDS[1]}): age is 'old'" in told and "survival_days is 'soon'" in told
    assert "extent_of_resection is 'PARTIAL'" in told
    assert f"line 5: second row for {IDS[0]}" in told and "line 6: no patient" in told
    with pytest.warns(UserWarning, match="age is 'old'"):
        data = load(nifti, damaged="skip")
    assert data.patients[1].age is None and data.patients[0].age == 60.463 and len(data.notes) == 5

    (nifti / "survival_info.csv").write_text("a,b\n1,2\n")
    assert read_patients(nifti, IDS)[1] == [
        "survival_info.csv: no column brats20id, age, survival_days, extent_of_resection"
    ]


# ---- slices and batches


def test_batches_are_the_slices_of_the_volumes(nifti):
    data = load(nifti)
    slices = data.slices(z=range(2, 9))
    assert len(slices) == 21 and slices.shape == (4, 24, 20) and slices.patients[0] == IDS[0]
    index = torch.tensor([20, 0, 7, 7])
    images, labels = slices.batch(index)
    assert images.shape == (4, 4, 24, 20) and images.dtype == labels.dtype == torch.uint8
    for i, image, label in zip(index.tolist(), images, labels, strict=True):
        volume = data.volume(slices.patients[i])
        assert np.array_equal(image, volume.images[slices.z[i]]) and np.array_equal(label, volume.labels[slices.z[i]])
        assert slices.has_tumor[i] == label.any()
        assert slices.voxels[i].tolist() == [int((label == value).sum()) for value in (1, 2, 4)]
    mean, std = slices.statistics(index)
    assert torch.allclose(mean[1].double(), torch.tensor(data.volume(IDS[0]).mean)) and std.shape == (4, 4)


def test_batch_into_given_memory(nifti):
    slices = load(nifti).slices(z=range(10))
    out = torch.full((5, 4, 24, 20), 9, dtype=torch.uint8), torch.full((5, 24, 20), 9, dtype=torch.uint8)
    images, labels = slices.batch([3, 4], out=out)
    assert images.data_ptr() == out[0].data_ptr() and labels.data_ptr() == out[1].data_ptr()
    assert torch.equal(images, slices.batch([3, 4])[0]) and (out[0][2:] == 9).all()
    for wrong in ((out[0].float(), out[1]), (out[0][:1], out[1]), (out[1], out[0]), (out[0].mT, out[1])):
        with pytest.raises(DataError, match="out: expected contiguous uint8"):
            slices.batch([3, 4], out=wrong)


def test_choice_of_slices(nifti):
    data = load(nifti)
    assert data.slices([IDS[2], data.patients[0]], [4, 3]).groups.tolist() == [2, 2, 0, 0]
    assert data.slices([IDS[2]], [4, 3]).z.tolist() == [3, 4]
    part = data.slices(z=range(10)).subset(np.arange(30) % 10 == 5)
    assert part.groups.tolist() == [0, 1, 2] and part.z.tolist() == [5, 5, 5]
    assert part.fingerprint == data.slices(z=[5]).fingerprint != data.slices(z=[6]).fingerprint
    with pytest.raises(DataError, match="no slice"):
        data.slices()  # the default is the study's range, which these small volumes do not reach
    copy = pickle.loads(pickle.dumps(part))
    assert len(pickle.dumps(part)) < 20_000 and torch.equal(copy.batch([1])[0], part.batch([1])[0])


def test_only_slices_that_exist(tmp_path):
    for number in (1, 2):
        write_hdf5(tmp_path / "h5", number, make_volume(number), z=range(3, 8))
    data = load(tmp_path / "h5")
    assert data.volume(IDS[0]).z.tolist() == [3, 4, 5, 6, 7] and len(data.slices(z=range(155))) == 10
    images, _ = data.slices(z=[4]).batch([1])
    assert np.array_equal(images[0], data.volume(IDS[1]).images[1])


def test_phantom(tiny_phantom):
    data = load_brats(tiny_phantom / "brats2020")
    assert data.name == "phantom" and len(data) == 2 and data.volume(IDS[0]).z.tolist() == [60, 80]
    assert {patient.grade for patient in data.patients} == {"HGG", "LGG"}
    images, labels = data.slices().batch([0, 1, 2, 3])
    assert images.shape == (4, 4, 240, 240) and labels.any()
    # Orientation: rows run from right to left, columns from front to back. The head is longer than wide.
    rows, columns = (np.ptp(np.flatnonzero(images.numpy().any(axes))) for axes in ((0, 1, 3), (0, 1, 2)))
    assert columns > rows


# ---- what a model is given

IMAGES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(4), st.integers(1, 6), st.integers(1, 6)))


@given(IMAGES)
def test_min_max_follows_its_formula(images):
    scaled = min_max(images)
    assert scaled.dtype == np.float32 and torch.equal(min_max(torch.from_numpy(images)), torch.from_numpy(scaled))
    for image, result in zip(
        images.reshape(-1, *images.shape[2:]).astype(float), scaled.reshape(-1, *images.shape[2:]), strict=True
    ):
        span = image.max() - image.min()
        assert np.allclose(result, (image - image.min()) / span if span else 0)


@given(IMAGES)
def test_standardized_brain_has_mean_0_and_background_stays_0(images):
    mean, std = np.zeros((len(images), 4)), np.zeros((len(images), 4))
    for place in np.ndindex(mean.shape):
        if (brain := images[place][images[place] > 0]).size:
            mean[place], std[place] = brain.mean(), brain.std()
    result = standardize(images, mean, std)
    assert (result[images == 0] == 0).all()
    for place in np.ndindex(mean.shape):
        if (brain := result[place][images[place] > 0]).size:
            assert abs(brain.mean()) < 1e-3 and (std[place] < 1e-6 or abs(brain.std() - 1) < 1e-3)


def test_region_masks():
    labels = torch.tensor([[[0, 1, 2, 4]]], dtype=torch.uint8)
    expected = {"NCR": [0, 1, 0, 0], "ED": [0, 0, 1, 0], "ET": [0, 0, 0, 1], "WT": [0, 1, 1, 1], "TC": [0, 1, 0, 1]}
    masks = region_masks(labels, tuple(expected))
    assert masks.shape == (1, 5, 1, 4) and masks.dtype == torch.bool and set(expected) == set(REGIONS)
    assert masks[0, :, 0].int().tolist() == list(expected.values())
    assert region_masks(labels.numpy()).shape == (1, 3, 1, 4)
    with pytest.raises(DataError, match="WT"):
        region_masks(labels, ("tumour",))


def test_ranges():
    assert ranges([3, 4, 5, 9]) == "3-5, 9"


# ---- which channel is which


def test_tiny_volumes_are_called_uncertain(nifti):
    data = load(nifti)
    assert not data.physics(IDS[0]).certain and "uncertain in BraTS20_Training_001" in data.channel_order


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1)])
def test_channels_are_recognized_in_any_order(real_brats, own_root, order):
    store = own_root / "store"
    (source, *_) = list_sources(real_brats)
    if not (facts := store / "a.json").exists():
        attempt(source, store / "a.npy", Options())
    records = np.load(store / "a.npy")
    found = identify(records[:, list(order)], records[:, 4])
    assert found.certain and found.order == tuple(MODALITIES[c] for c in order)
    assert found.fluid[found.order.index("FLAIR")] < 1 < 2 < found.fluid[found.order.index("T2")]
    if order == (0, 1, 2, 3):
        assert list(found.order) == json.loads(facts.read_text())["physics"]["order"]


def test_real_patients(real_brats):
    data = load_brats(real_brats, workers=1)
    assert [patient.grade for patient in data.patients] == ["HGG", "HGG", "LGG"]
    assert data.patients[0].survival_days == 503 and data.patients[2].survival_days is None
    assert data.volume(IDS[0].replace("001", "007")).images.shape == (155, 4, 240, 240)
    assert data.notes == ["BraTS20_Training_135: FLAIR covers 66% of the brain only"]
    assert data.channel_order == "FLAIR, T1, T1c, T2: recognized from the voxels in 3 of 3 patients"
    assert all(data.physics(id).order == MODALITIES for id in data.ids)
    assert str(brats.check_physics(data.volume(data.ids[0]))) == str(data.physics(data.ids[0]))
    assert 0.9 < data.table()[2]["ET_ml"] < 1 and len(data.slices()) == 3 * 77


def test_hdf5_in_another_order_is_refused_and_named(real_brats, tmp_path):
    folder = real_brats / "BraTS20_Training_007"
    volume = [
        nib.load(folder / f"{folder.name}_{name}.nii.gz").get_fdata() for name in ("flair", "t1", "t1ce", "t2", "seg")
    ]
    images, labels = np.stack(volume[:4], -1)[..., 60:90:6, :], volume[4][..., 60:90:6]
    write_hdf5(tmp_path / "right", 7, (images, labels))
    write_hdf5(tmp_path / "wrong", 7, (images, labels), order=(3, 0, 2, 1))
    shape = (240, 240, 155)
    with pytest.raises(DataError, match=r"look like T2, FLAIR, T1c, T1 .*channels=\('T2', 'FLAIR', 'T1c', 'T1'\)"):
        load(tmp_path / "wrong", shape=shape)
    named = load(tmp_path / "wrong", shape=shape, channels=("T2", "FLAIR", "T1c", "T1"))
    right = load(tmp_path / "right", shape=shape)
    assert named.fingerprint == right.fingerprint and named.store != right.store


def test_benchmark_prints_its_numbers(repository, capsys):
    benchmark = runpy.run_path(str(repository / "benchmarks" / "brats_store.py"))
    benchmark["main"](["--slices", "2", "--seconds", "0.01", "--repeats", "1"])
    out = capsys.readouterr().out
    assert "hardware: " in out and "8 slices of 1 patients" in out
    for letter in "abcd":
        assert re.search(rf"^\({letter}\) .* \d+ slices/s", out, re.MULTILINE)


def test_arguments_are_checked(nifti):
    for named in ({"damaged": "ignore"}, {"label_3": "NCR"}, {"channels": ("T1",)}, {"workers": 0}):
        with pytest.raises(DataError, match=next(iter(named))):
            load_brats(nifti, **named)
