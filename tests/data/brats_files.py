"""Small volumes written in the layouts of BraTS: what the tests of `brainlib.data.brats` read."""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np

SHAPE = (24, 20, 10)
#: Axes to the left, to the back and upward, as the official files have them.
AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
SUFFIXES = ("flair", "t1", "t1ce", "t2")


def make_volume(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Four channels of noise int16 ``(x, y, z, 4)`` in a box, 0 around it, and labels ``(x, y, z)`` of all kinds."""
    rng = np.random.default_rng(seed)
    x, y, z = shape
    images, labels = np.zeros((*shape, 4), np.int16), np.zeros(shape, np.uint8)
    inside = (slice(3, x - 4), slice(2, y - 3), slice(1, z - 1))
    images[inside] = rng.integers(1, 3000, images[inside].shape) + 1
    middle = tuple(slice(n // 3, n // 2) for n in shape)
    labels[middle] = rng.choice([0, 1, 2, 4], labels[middle].shape)
    labels[x // 2, y // 2, z // 2] = 4
    return images, labels


def write_nifti(
    root: Path,
    id: str,
    volume: tuple[np.ndarray, np.ndarray],
    suffix: str = ".nii.gz",
    affine: np.ndarray = AFFINE,
    mask_affine: np.ndarray | None = None,
) -> Path:
    folder = root / id
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = volume
    for channel, name in enumerate(SUFFIXES):
        nib.save(nib.Nifti1Image(images[..., channel], affine), folder / f"{id}_{name}{suffix}")
    mask = nib.Nifti1Image(labels, affine if mask_affine is None else mask_affine)
    nib.save(mask, folder / f"{id}_seg{suffix}")
    return folder


def write_hdf5(folder: Path, number: int, volume: tuple[np.ndarray, np.ndarray], z=None, order=(0, 1, 2, 3)) -> None:
    """Slices standardized per volume over the brain: the background is a negative constant."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = volume
    values = images[..., list(order)].astype(float)
    for channel in range(4):
        brain = values[..., channel][values[..., channel] > 0]
        values[..., channel] = (values[..., channel] - brain.mean()) / brain.std()
    masks = np.stack([labels == value for value in (1, 2, 4)], -1).astype(np.uint8)
    for position in range(images.shape[2]) if z is None else z:
        with h5py.File(folder / f"volume_{number}_slice_{position}.h5", "w") as file:
            file["image"], file["mask"] = values[:, :, position], masks[:, :, position]
