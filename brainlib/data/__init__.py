"""From disk to batches."""

from brainlib.data.augment import Augment, repeat_channels, to_input
from brainlib.data.mri import CLASSES, MRIDataset, crop_margins, load_mri, read_slice
from brainlib.data.phantom import PhantomSettings, make_phantom
from brainlib.data.splits import audit, check_split, group_split, link_groups
from brainlib.files import DataError, data_root

__all__ = [
    "CLASSES",
    "Augment",
    "DataError",
    "MRIDataset",
    "PhantomSettings",
    "audit",
    "check_split",
    "crop_margins",
    "data_root",
    "group_split",
    "link_groups",
    "load_mri",
    "make_phantom",
    "read_slice",
    "repeat_channels",
    "to_input",
]
