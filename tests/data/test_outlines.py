"""Outlines end up on the tumors: by geometry on made-up files, by brightness on the real ones."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from helpers import random_slices
from PIL import Image
from scipy import ndimage

import brainlib.data.outlines as outlines_module
from brainlib.data import DataError, load_mri
from brainlib.data.mri import Match
from brainlib.data.outlines import outline_mask, read_outlines, tumor_outlines

SQUARE = np.array([[100.0, 200.0], [200.0, 200.0], [200.0, 400.0], [100.0, 400.0]])


def test_the_way_of_a_point(monkeypatch):
    """A bright rectangle is drawn at 512 pixels, then mirrored, scaled, cropped and scaled as a slice would be."""
    source = np.zeros((512, 512), np.uint8)
    source[200:401, 100:201] = 255
    data = random_slices(3, size=128)
    sizes, margins = np.array([[224, 224], [256, 512], [224, 224]]), np.array([[20, 30, 10, 14], [0, 0, 0, 0], [1] * 4])
    matches = {
        data.paths[0]: Match("figshare-7", "s1", 1, False),
        data.paths[1]: Match("figshare-7", "s1", 1, True),
        data.paths[2]: Match("br35h-7", None, 0, False),
    }
    monkeypatch.setattr(outlines_module, "read_match_table", lambda: matches)
    data = replace(data, sizes=sizes, facts={"margins": margins})
    found = tumor_outlines(data, {7: SQUARE})
    assert sorted(found) == [0, 1]
    for i in found:
        picture = Image.fromarray(source[:, ::-1] if i == 1 else source).resize(sizes[i][::-1], Image.Resampling.BOX)
        top, bottom, left, right = margins[i]
        head = np.asarray(picture)[top : sizes[i][0] - bottom, left : sizes[i][1] - right]
        expected = np.asarray(Image.fromarray(head).resize((128, 128), Image.Resampling.BILINEAR)) > 127
        inside = outline_mask(found[i], 128)
        assert (inside & expected).sum() / (inside | expected).sum() > 0.93


def test_tables_and_mat_files(tmp_path):
    rows = ["file,label,tumorBorder", f'7.png,1,"{json.dumps(SQUARE.tolist())}"', "8.png,1,"]
    (tmp_path / "borders.csv").write_text("\n".join(rows))
    for source in (tmp_path, tmp_path / "borders.csv"):
        found = read_outlines(source)
        assert list(found) == [7]
        np.testing.assert_array_equal(found[7], SQUARE)
    (tmp_path / "mat" / "inner").mkdir(parents=True)
    with h5py.File(tmp_path / "mat" / "inner" / "12.mat", "w") as file:
        file["cjdata/tumorBorder"] = SQUARE.reshape(1, -1)
    np.testing.assert_array_equal(read_outlines(tmp_path / "mat")[12], SQUARE)


def test_errors(tmp_path):
    with pytest.raises(DataError, match="figshare.1512427"):
        read_outlines(tmp_path / "nothing")
    (tmp_path / "borders.csv").write_text("file,tumorBorder\n1.png,[[1]\n")
    with pytest.raises(DataError, match="line 2"):
        read_outlines(tmp_path)
    (tmp_path / "mat").mkdir()
    (tmp_path / "mat" / "1.mat").write_bytes(b"no")
    with pytest.raises(DataError, match="1.mat holds no outline"):
        read_outlines(tmp_path / "mat")


def test_real_outlines_hold_the_bright_part(real_mri, figshare):
    data = load_mri(real_mri, size=128)
    found = tumor_outlines(data, read_outlines(figshare))
    assert len(found) == 4750
    contrast = {False: [], True: []}  # of meningiomas and pituitary tumors, which take up contrast agent
    match = outlines_module.read_match_table()
    for i in [i for i in found if data.labels[i] in (1, 3)][::5]:
        inside = outline_mask(found[i], 128)
        around = ndimage.binary_dilation(inside, iterations=5) & ~inside
        if inside.sum() > 30:
            difference = data.images[i][inside].mean() - data.images[i][around].mean()
            contrast[match[data.paths[i]].mirrored].append(difference > 0)
    for mirrored, brighter in contrast.items():
        assert len(brighter) > 100 and np.mean(brighter) > 0.9, (mirrored, np.mean(brighter))
