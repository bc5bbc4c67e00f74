"""Loading slices: the cache, the crop, every kind of file that people have, and every kind that is broken."""

import errno
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import mounted, random_slices, tree
from PIL import Image

import brainlib.data.mri as mri
from brainlib.data import CLASSES, DataError, crop_margins, image_facts, load_mri, read_slice
from brainlib.data.mri import SPLITS, find_root, list_files


def head(size: int = 64, seed: int = 0) -> np.ndarray:
    """A bright disk with texture on black, uint8 ``(size, size)``."""
    y, x = np.mgrid[:size, :size] - size / 2
    texture = np.random.default_rng(seed).integers(90, 200, (size, size))
    return np.where(x**2 + (1.3 * y) ** 2 < (0.4 * size) ** 2, texture, 0).astype(np.uint8)


def make_set(root: Path, count: int = 1) -> Path:
    """``count`` pictures for each class of each folder, all different."""
    seed = 0
    for split in SPLITS:
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(head(seed=seed)).save(root / split / name / f"{i}.jpg", quality=90)
                seed += 1
    return root


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A set of eight pictures, and an empty data root of its own."""
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "data"))
    return make_set(tmp_path / "set")


def test_a_set_is_read_in_a_fixed_order(small):
    data = load_mri(small, size=32)
    assert len(data) == 8 and data.images.shape == (8, 32, 32) and data.images.dtype == np.uint8
    assert data.paths.tolist() == [f"{split}/{name}/0.jpg" for split in SPLITS for name in CLASSES]
    assert data.labels.tolist() == [0, 1, 2, 3] * 2 and data.labels.dtype == np.int64
    assert data.splits.tolist() == ["Training"] * 4 + ["Testing"] * 4
    assert data.sizes.tolist() == [[64, 64]] * 8 and data.counts().tolist() == [2, 2, 2, 2]
    assert data.groups.tolist() == list(range(8)) and data.groups.dtype == np.int64
    assert "8 slices" in repr(data) and "glioma 2" in repr(data)
    for split in SPLITS:
        part = load_mri(small, size=32, split=split)
        assert part.paths.tolist() == data.paths[data.splits == split].tolist()
        assert part.name == data.name == "brain-tumor-mri"


def test_pixels_are_those_of_read_slice(small):
    data = load_mri(small, size=32)
    for i, path in enumerate(data.paths):
        image, facts = read_slice(small / path, 32)
        np.testing.assert_array_equal(data.images[i], image)
        assert tuple(data.sizes[i]) == facts.size and data.hashes[i] == facts.sha256
        assert data.facts["mode"][i] == facts.mode == "L" and data.facts["ring"][i] == facts.ring
        np.testing.assert_array_equal(data.facts["margins"][i], facts.margins)
        np.testing.assert_array_equal(data.facts["phash"][i], facts.phash)


def test_facts_of_a_file(tmp_path):
    picture = np.full((60, 80), 10, np.uint8)
    picture[10:50, 30:75] = 200
    picture[:4], picture[-4:], picture[:, :4], picture[:, -4:] = 2, 2, 2, 2
    Image.fromarray(picture).convert("RGB").save(tmp_path / "a.png")
    facts = image_facts(tmp_path / "a.png")
    assert facts.size == (60, 80) and facts.mode == "RGB" and facts.ring == 2
    # The smoothing before the threshold lets the box reach two pixels beyond the bright region at most.
    np.testing.assert_allclose(facts.margins, (10, 10, 30, 5), atol=2)
    assert facts.sha256 == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest() and facts.phash.shape == (8,)


def test_batches(small):
    data = load_mri(small, size=32)
    for index in (torch.tensor([3, 0, 3]), np.array([3, 0, 3])):
        images, labels = data.batch(index)
        assert images.shape == (3, 1, 32, 32) and images.dtype == torch.uint8
        assert labels.dtype == torch.int64 and labels.tolist() == [3, 0, 3]
        np.testing.assert_array_equal(images[1, 0].numpy(), data.images[0])
    images.zero_()
    assert data.images[3].any()  # a batch is a copy


def test_subsets_keep_the_slices_together(small):
    data = load_mri(small, size=32)
    for index in (np.array([5, 2]), np.isin(np.arange(8), [2, 5])):
        part = data.subset(index)
        assert sorted(part.paths.tolist()) == sorted(data.paths[[5, 2]].tolist())
        for i, path in enumerate(part.paths):
            whole = data.paths.tolist().index(path)
            np.testing.assert_array_equal(part.images[i], data.images[whole])
            for name in ("labels", "groups", "hashes", "splits", "pictures", "series", "folds"):
                assert getattr(part, name)[i] == getattr(data, name)[whole]


def test_byte_identical_files_share_a_group(small):
    shutil.copy(small / "Training/glioma/0.jpg", small / "Testing/pituitary/copy.jpg")
    groups = dict(zip(*(lambda d: (d.paths, d.groups))(load_mri(small, size=32)), strict=True))
    assert groups["Training/glioma/0.jpg"] == groups["Testing/pituitary/copy.jpg"]
    assert len(set(groups.values())) == 8


def test_patients_of_a_table_are_groups(small):
    rows = ["path,patient", "Training/glioma/0.jpg,p1", "Testing/glioma/0.jpg,p1", "Testing/notumor/0.jpg,p2"]
    (small / "slices.csv").write_text("\n".join(rows))
    data = load_mri(small, size=32)
    by_path = dict(zip(data.paths, data.groups, strict=True))
    assert by_path["Training/glioma/0.jpg"] == by_path["Testing/glioma/0.jpg"]
    assert len(set(by_path.values())) == 7
    assert len(set(data.series)) == 3 and (data.series == -1).sum() == 5 and len(set(data.pictures)) == 8


def test_copies_that_look_the_same_share_a_picture_and_a_group(small):
    original = np.asarray(Image.open(small / "Training/glioma/0.jpg"))
    Image.fromarray(original[:, ::-1]).save(small / "Testing/glioma/mirrored.png")
    Image.fromarray((np.rot90(original) * 0.7).astype(np.uint8)).save(small / "Testing/notumor/turned.jpg", quality=95)
    data = load_mri(small, size=32)
    for column in (data.pictures, data.groups):
        by_path = dict(zip(data.paths, column, strict=True))
        assert by_path["Training/glioma/0.jpg"] == by_path["Testing/glioma/mirrored.png"]
        assert by_path["Training/glioma/0.jpg"] == by_path["Testing/notumor/turned.jpg"]
        assert len(set(by_path.values())) == 8
    assert len(set(data.hashes)) == 10
    again = load_mri(small, size=64)  # what is one picture does not depend on the size that a model wants
    np.testing.assert_array_equal(data.pictures, again.pictures)


def test_fingerprint_knows_files_labels_order_and_size():
    data = random_slices(6)
    others = [
        data.subset(np.array([1, 0, 2, 3, 4, 5])),
        data.subset(np.arange(5)),
        replace(data, labels=data.labels[::-1].copy()),
        replace(data, hashes=random_slices(6, seed=1).hashes),
        replace(data, images=np.zeros((6, 16, 16), np.uint8)),
    ]
    prints = [data.fingerprint, *(other.fingerprint for other in others)]
    assert len(set(prints)) == 6 and all(len(p) == 16 and int(p, 16) >= 0 for p in prints)
    assert data.subset(np.arange(6)).fingerprint == random_slices(6).fingerprint == data.fingerprint


# The cache ------------------------------------------------------------------------------------------------------------


def refuse(*_):
    raise AssertionError("a file was decoded although the cache has it")


def test_second_call_opens_no_picture(small, monkeypatch):
    first = load_mri(small, size=32)
    monkeypatch.setattr(mri, "_read", refuse)
    second = load_mri(small, size=32)
    np.testing.assert_array_equal(first.images, second.images)
    assert first.fingerprint == second.fingerprint
    with pytest.raises(AssertionError):
        load_mri(small, size=48)  # another size is another cache


def test_cache_knows_when_a_file_changed(small):
    before = load_mri(small, size=32)
    path = small / "Testing/glioma/0.jpg"
    Image.fromarray(head(seed=99)).save(path)
    after = load_mri(small, size=32)
    changed = [p for p, a, b in zip(before.paths, before.hashes, after.hashes, strict=True) if a != b]
    assert changed == ["Testing/glioma/0.jpg"] and before.fingerprint != after.fingerprint
    path.unlink()
    shutil.copy(small / "Testing/notumor/0.jpg", small / "Testing/glioma/new.jpg")
    assert "Testing/glioma/new.jpg" in load_mri(small, size=32).paths


def test_same_length_and_name_but_another_time_is_decoded_again(small, monkeypatch):
    load_mri(small, size=32)
    path = small / "Testing/glioma/0.jpg"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1000))
    monkeypatch.setattr(mri, "_read", refuse)
    with pytest.raises(AssertionError):
        load_mri(small, size=32)


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"text", lambda b: b[:400] + b"!!!!" + b[404:]]
)
def test_damaged_cache_is_made_again(small, damage):
    first = load_mri(small, size=32)
    (cache,) = (small.parent / "data" / "cache").iterdir()
    whole = cache.read_bytes()
    cache.write_bytes(damage(whole))
    np.testing.assert_array_equal(load_mri(small, size=32).images, first.images)
    assert len(cache.read_bytes()) == len(whole)


# The crop -------------------------------------------------------------------------------------------------------------


def test_margins_are_cropped():
    picture = np.zeros((120, 100), np.uint8)
    picture[30:90, 20:70] = 150
    rows, columns = crop_margins(picture).shape
    # The smoothing of five pixels may add up to two on each side.
    assert 60 <= rows <= 64 and 50 <= columns <= 54
    assert (crop_margins(picture) == 150).sum() == 60 * 50


def test_a_letter_in_the_corner_does_not_keep_the_margin():
    picture = np.zeros((120, 100), np.uint8)
    picture[30:90, 20:70] = 150
    picture[2:12, 2:8] = 255
    assert crop_margins(picture).shape[0] < 70 and crop_margins(picture).max() == 150


def test_faint_noise_does_not_keep_the_margin():
    picture = np.random.default_rng(0).integers(0, 12, (120, 100)).astype(np.uint8)
    picture[30:90, 20:70] = 150
    assert crop_margins(picture).shape[0] <= 64


def test_a_picture_without_a_head_is_kept_whole():
    picture = np.full((40, 30), 10, np.uint8)
    np.testing.assert_array_equal(crop_margins(picture), picture)
    assert crop_margins(np.full((40, 30), 200, np.uint8)).shape == (40, 30)


# Kinds of files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", range(4))
def test_the_folders_may_lie_deeper(tmp_path, depth):
    inner = tmp_path.joinpath("set", *"abc"[:depth])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "readme.txt").write_text("a file among the folders")
    make_set(inner)
    assert find_root(tmp_path / "set") == inner.resolve()
    assert len(load_mri(str(tmp_path / "set"), size=16)) == 8


def test_four_levels_down_is_too_deep(tmp_path):
    make_set(tmp_path / "a" / "b" / "c" / "d" / "e")
    with pytest.raises(DataError, match="neither this folder nor one below it"):
        load_mri(tmp_path / "a", size=16)


def test_the_default_root_is_below_the_data_root(small):
    shutil.copytree(small, small.parent / "data" / "brain-tumor-mri")
    assert len(load_mri(size=16)) == 8


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_modes_of_pictures(tmp_path, mode):
    gray = Image.fromarray(head())
    gray.save(tmp_path / "gray.png")
    gray.convert(mode).save(tmp_path / "other.png" if mode != "CMYK" else tmp_path / "other.jpg", quality=95)
    found = read_slice(next(tmp_path.glob("other.*")), 32)[0].astype(float)
    if mode == "1":  # dithered: only the outline is left
        assert np.corrcoef(found.ravel(), read_slice(tmp_path / "gray.png", 32)[0].ravel())[0, 1] > 0.7
    else:
        np.testing.assert_allclose(found, read_slice(tmp_path / "gray.png", 32)[0], atol=4)


def test_sixteen_bits_are_scaled(tmp_path):
    Image.fromarray(head()).save(tmp_path / "8.png")
    Image.fromarray(head().astype(np.uint16) * 257).save(tmp_path / "16.png")
    expected, found = (read_slice(tmp_path / name, 32)[0].astype(float) for name in ("8.png", "16.png"))
    np.testing.assert_allclose(found, expected, atol=2)


def test_suffixes_and_hidden_files(small):
    Image.fromarray(head(seed=50)).save(small / "Training/glioma/a.PNG", "png")
    Image.fromarray(head(seed=51)).save(small / "Training/glioma/b.JPEG", "jpeg")
    (small / "Training/glioma/notes.txt").write_text("not a picture")
    (small / "Training/glioma/._0.jpg").write_bytes(b"what macOS leaves behind")
    (small / "Training/glioma/Thumbs.db").write_bytes(b"what Windows leaves behind")
    names = [p.name for p in list_files(small) if p.parent.name == "glioma" and p.parent.parent.name == "Training"]
    assert names == ["0.jpg", "a.PNG", "b.JPEG"] and len(load_mri(small, size=16)) == 10


def test_pictures_need_not_be_square(small):
    Image.fromarray(np.pad(head(), ((0, 0), (30, 50)))).save(small / "Testing/glioma/wide.png")
    data = load_mri(small, size=16)
    assert data.sizes[data.paths.tolist().index("Testing/glioma/wide.png")].tolist() == [64, 144]


def test_the_phantom_is_read(tiny_phantom):
    data = load_mri(tiny_phantom / "brain-tumor-mri", size=64)
    assert data.name == "phantom"
    assert (data.counts() > 0).all() and len(np.unique(data.groups)) < len(data)
    assert data.images.mean() > 20 and data.images.std() > 20


def test_the_real_set_is_read(real_mri):
    files = list_files(real_mri)[::500]
    images = np.stack([read_slice(path, 128)[0] for path in files])
    assert images.shape == (15, 128, 128)
    assert (images.reshape(15, -1).std(1) > 15).all() and 30 < images.mean() < 130


# Bad input: one message that names the file, and nothing left behind --------------------------------------------------


def failure(root: Path, data: Path, **options) -> str:
    """The message of the DataError of loading ``root``; nothing may appear in the data root."""
    before = tree(root) if root.is_dir() else None
    with pytest.raises(DataError) as caught:
        load_mri(root, **{"size": 16} | options)
    assert not data.exists() or tree(data) == {}
    assert before is None or tree(root) == before
    return str(caught.value)


def test_broken_pictures_are_named_in_one_report(small, tmp_path):
    whole = (small / "Training/glioma/0.jpg").read_bytes()
    (small / "Training/glioma/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (small / "Training/notumor/text.jpg").write_text("this is not a picture")
    (small / "Testing/pituitary/empty.png").write_bytes(b"")
    (small / "Testing/pituitary/folder.jpg").mkdir()
    message = failure(small, tmp_path / "data")
    assert "4 of 12 images" in message and str(small) in message
    for name in ("Training/glioma/cut.jpg", "Training/notumor/text.jpg", "empty.png", "folder.jpg"):
        assert name in message
    assert message.count("\n") == 4


def test_a_long_report_is_cut(small, tmp_path):
    for i in range(25):
        (small / "Training/glioma" / f"text-{i:02}.jpg").write_text("no")
    message = failure(small, tmp_path / "data")
    assert "25 of 33 images" in message and message.count("\n") == 21 and message.endswith("...")


def test_any_damage_gives_a_report(small, tmp_path):
    """Bytes changed at random, in every format: the picture is read, or it is reported; nothing else comes up."""
    rng = np.random.default_rng(0)
    path = small / "Training/glioma/x.png"
    for suffix in ("png", "jpeg"):
        Image.fromarray(head()).save(small / "whole", suffix)
        for _ in range(60):
            content = bytearray((small / "whole").read_bytes())
            for place in rng.integers(0, rng.choice([60, len(content)]), 3):
                content[place] = rng.integers(256)
            path.write_bytes(content[: rng.integers(1, 2 * len(content))])
            try:
                mri._decode(small, [path], 16, False)
            except DataError as error:
                assert "Training/glioma/x.png" in str(error)


def test_link_that_leads_nowhere(small, tmp_path):
    (small / "Testing/glioma/1.jpg").symlink_to(tmp_path / "gone.jpg")
    assert "Testing/glioma/1.jpg" in failure(small, tmp_path / "data")


def test_empty_class_folder(small, tmp_path):
    (small / "Testing/notumor/0.jpg").unlink()
    (small / "Testing/notumor/readme.txt").write_text("empty")
    message = failure(small, tmp_path / "data")
    assert str(small / "Testing/notumor") in message and "holds no image" in message


def test_missing_class_folder(small, tmp_path):
    shutil.rmtree(small / "Training/meningioma")
    message = failure(small, tmp_path / "data")
    assert str(small / "Training/meningioma") in message and "is missing" in message


def test_missing_root(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "data"))
    assert str(tmp_path / "nowhere") in failure(tmp_path / "nowhere", tmp_path / "data")
    with pytest.raises(DataError, match="no such folder.*BRAINLIB_DATA"):
        load_mri()
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in failure(tmp_path / "file", tmp_path / "data")
    (tmp_path / "empty").mkdir()
    assert "Training and Testing" in failure(tmp_path / "empty", tmp_path / "data")


def test_wrong_arguments(small, tmp_path):
    assert "split='train'" in failure(small, tmp_path / "data", split="train")
    assert "size=15" in failure(small, tmp_path / "data", size=15)
    assert "size=1025" in failure(small, tmp_path / "data", size=1025)


def test_data_root_that_cannot_be_written(small, tmp_path, monkeypatch):
    # Root may write into any folder, so the read-only one is a path below a file, and an error raised by hand.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "file" / "data"))
    assert str(tmp_path / "file" / "data") in failure(small, tmp_path / "data")

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("tempfile.mkstemp", read_only)
    assert "cannot be written to" in failure(small, tmp_path / "data")


def test_read_only_disk(small, tmp_path, monkeypatch):
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        monkeypatch.setenv("BRAINLIB_DATA", str(disk))
        message = failure(small, disk)
    assert "cannot be written to" in message and str(tmp_path / "disk") in message


def test_full_disk(small, tmp_path, monkeypatch):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        monkeypatch.setenv("BRAINLIB_DATA", str(disk))
        message = failure(small, disk, size=256)
    assert "disk is full" in message and str(tmp_path / "disk") in message
