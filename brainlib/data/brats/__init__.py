"""Multimodal volumes of gliomas (BraTS 2020): from NIfTI files or Kaggle's HDF5 slices to batches.

Read ``layout`` first (which files belong to which patient), then ``tables`` (who the patients are), ``read`` (files to
arrays, and what is refused), ``physics`` (which channel is which contrast), ``store`` (converted once, one file per
patient), ``dataset`` (volumes and slices), ``transform`` (brightness and masks), ``training`` (what a model is given).

The axes of a slice are those of the Kaggle HDF5 files, and the same for both sources: rows run from the patient's
right to the left, columns from the front (anterior) to the back. Shown with row 0 on top, the forehead is at the left
edge; transposed, it is at the top and the patient's right is on the left, as radiologists look at it. ``z`` counts
millimeters upward from the lowest of the 155 slices.

Source of the data: Menze et al. 2015 (10.1109/TMI.2014.2377694), Bakas et al. 2017 (10.1038/sdata.2017.117), Bakas et
al. 2018 (arXiv 1811.02629). For teaching and research, not a medical device.
"""

from .dataset import BraTSDataset, BraTSSlices, Volume, load_brats
from .layout import MODALITIES, find_brats
from .physics import Physics, check_physics
from .tables import Patient
from .training import SegmentationData
from .transform import LABELS, REGIONS, min_max, region_masks, standardize

__all__ = [
    "LABELS",
    "MODALITIES",
    "REGIONS",
    "BraTSDataset",
    "BraTSSlices",
    "Patient",
    "Physics",
    "SegmentationData",
    "Volume",
    "check_physics",
    "find_brats",
    "load_brats",
    "min_max",
    "region_masks",
    "standardize",
]
