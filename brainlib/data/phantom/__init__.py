"""The phantom: synthetic patients with known truth, in the folders and formats of the two Kaggle data sets.

Read ``settings`` first, then ``anatomy`` (a head), ``growth`` and ``tumors`` (what grows in it), ``signal`` and
``imaging`` (how it looks to a scanner), ``cohort`` (who is in the set) and ``write`` (how it gets to disk). BrainWeb
(Cocosco et al., 1997; Collins et al., 1998) and TumorSim (Prastawa et al., 2009) are the models of the idea. Numbers
measured on the phantom say nothing about patients; it is for teaching and research, not a medical device.
"""

from ..mri import CLASSES
from .anatomy import Head, template
from .growth import grow
from .imaging import Scan, Site, compose, slice_points, to_bytes
from .settings import PhantomSettings
from .signal import (
    SEQUENCES,
    TISSUES,
    Sequence,
    Tissue,
    inversion_recovery,
    nulling_ti,
    relative_signals,
    relaxation,
    rician,
    signal,
    spin_echo,
)
from .tumors import Adenoma, Glioma, Meningioma
from .write import make_phantom, phantom_hash

__all__ = [
    "CLASSES",
    "SEQUENCES",
    "TISSUES",
    "Adenoma",
    "Glioma",
    "Head",
    "Meningioma",
    "PhantomSettings",
    "Scan",
    "Sequence",
    "Site",
    "Tissue",
    "compose",
    "grow",
    "inversion_recovery",
    "make_phantom",
    "nulling_ti",
    "phantom_hash",
    "relative_signals",
    "relaxation",
    "rician",
    "signal",
    "slice_points",
    "spin_echo",
    "template",
    "to_bytes",
]
