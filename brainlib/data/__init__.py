"""From disk to batches."""

from brainlib.data.audit import Audit, audit
from brainlib.data.augment import Augment, repeat_channels, to_input
from brainlib.data.brats import BraTSDataset, SegmentationData, load_brats
from brainlib.data.mri import CLASSES, ImageFacts, MRIDataset, crop_margins, image_facts, load_mri, read_slice
from brainlib.data.phantom import PhantomSettings, make_phantom
from brainlib.data.splits import check_split, group_folds, group_split, link_groups, patient_folds
from brainlib.files import DataError, data_root

__all__ = [
    "CLASSES",
    "Audit",
    "Augment",
    "BraTSDataset",
    "DataError",
    "ImageFacts",
    "MRIDataset",
    "PhantomSettings",
    "SegmentationData",
    "audit",
    "check_split",
    "crop_margins",
    "data_root",
    "group_folds",
    "group_split",
    "image_facts",
    "link_groups",
    "load_brats",
    "load_mri",
    "make_phantom",
    "patient_folds",
    "read_slice",
    "repeat_channels",
    "to_input",
]
