"""Pictures that are one picture: perceptual hashes that survive flips and turns, and the pairs that they find.

A file's SHA-256 finds byte-identical copies only. Save the same slice once more, mirror it, turn it, brighten it, and
every byte differs. A perceptual hash describes the coarse layout of bright and dark instead; two hashes that differ in
few bits propose a pair, and the correlation of the two pictures decides.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn

SYMMETRIES = 8  # of a square: four turns, each plain or mirrored
THUMBNAIL = 64  # side of the pictures that are correlated


class NearDuplicates(NamedTuple):
    """Pairs of pictures that are one picture, M of them."""

    pairs: np.ndarray  # int64 (M, 2), positions, the smaller first
    symmetry: np.ndarray  # int64 (M,): `turn` of the second picture by this code gives the first
    correlation: np.ndarray  # float (M,), after turning


def turn(image: np.ndarray, code: int) -> np.ndarray:
    """One of the eight symmetries of a square: mirror left and right for a code of 4 or more, then turn by code % 4.

    Args:
        image: ``(..., H, W)``.
        code: 0 identity, 1 to 3 quarter turns counterclockwise, 4 mirror, 5 to 7 mirror and then turn.
    """
    return np.rot90(image[..., ::-1] if code >= 4 else image, code % 4, axes=(-2, -1))


def thumbnail(image: np.ndarray) -> np.ndarray:
    """A picture in small, uint8 ``(64, 64)``."""
    return np.asarray(Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """Hashes of a picture under the eight symmetries, uint64 ``(8,)``; entry ``k`` belongs to ``turn(image, k)``.

    The bits are the signs of the 8 by 8 lowest cosine coefficients of the picture at 32 by 32, without the mean
    (C. Zauner, 2010, describes hashes of this kind). Mirroring a picture flips the sign of its odd coefficients and a
    quarter turn also swaps rows and columns, so all eight come from one transform.

    Args:
        image: uint8 ``(H, W)``.
    """
    small = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR), np.float64)
    low = dctn(small, norm="ortho")[:8, :8]
    odd = (-1.0) ** np.arange(8)
    bits = np.empty((SYMMETRIES, 64), bool)
    for code in range(SYMMETRIES):
        turned = low * odd if code >= 4 else low
        for _ in range(code % 4):
            turned = turned.T * odd[:, None]  # a quarter turn is a transposition, then upside down
        bits[code] = turned.ravel() > 0
    bits[:, 0] = False
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def near_duplicates(
    thumbnails: np.ndarray, hashes: np.ndarray, distance: int = 8, correlation: float = 0.98
) -> NearDuplicates:
    """Find all pairs of pictures that are one picture up to a flip or turn, and up to brightness and contrast.

    Every hash is compared with every other, N² comparisons of eight machine words: a second for 7,000 pictures.

    Args:
        thumbnails: uint8 ``(N, 64, 64)``, see `thumbnail`.
        hashes: uint64 ``(N, 8)``, see `perceptual_hash`.
        distance: bits of 63 by which the hashes of a pair may differ.
        correlation: that the thumbnails of a pair must exceed.
    """
    first, second = [], []
    for start in range(0, len(hashes), 256):  # bounds the memory: 256 rows at a time
        rows = hashes[start : start + 256, :1]
        nearest = np.full((len(rows), len(hashes)), 64, np.uint8)
        for code in range(SYMMETRIES):
            np.minimum(nearest, np.bitwise_count(rows ^ hashes[None, :, code]), out=nearest)
        i, j = np.nonzero(nearest <= distance)
        first.append(i + start)
        second.append(j)
    i, j = np.concatenate(first or [[]]).astype(np.int64), np.concatenate(second or [[]]).astype(np.int64)
    i, j = i[i < j], j[i < j]
    best, code = np.full(len(i), -1.0), np.zeros(len(i), np.int64)
    plain = _normalize(thumbnails)
    for k in range(SYMMETRIES):
        turned = _normalize(turn(thumbnails, k))
        for start in range(0, len(i), 4096):
            part = slice(start, start + 4096)
            found = np.einsum("nd,nd->n", plain[i[part]], turned[j[part]])
            better = found > best[part]
            best[part][better], code[part][better] = found[better], k
    keep = best > correlation
    return NearDuplicates(np.stack([i[keep], j[keep]], axis=1), code[keep], best[keep])


def orientation(a: np.ndarray, b: np.ndarray) -> int:
    """The code by which `turn` of picture ``b`` fits picture ``a`` best; both uint8 ``(H, H)``."""
    a = _normalize(thumbnail(a)[None])[0]
    return int(np.argmax([a @ _normalize(turn(thumbnail(b), k)[None])[0] for k in range(SYMMETRIES)]))


def _normalize(images: np.ndarray) -> np.ndarray:
    """Vectors of mean 0 and length 1, so that a product of two is their correlation; float32 ``(N, H * W)``."""
    flat = np.ascontiguousarray(images).reshape(len(images), images.shape[1] * images.shape[2]).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    return flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6)
