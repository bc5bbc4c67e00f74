"""From tissue to brightness: relaxation, contrast agent, pulse sequences, coil shading and noise.

Times are in milliseconds, gadolinium concentrations in mmol/l (mM). Signals are relative: only ratios mean something.
The relaxation times follow the range and the ordering of the literature for 3 T and of BrainWeb's tissue model
(Cocosco et al., NeuroImage 5:S425, 1997; Collins et al., IEEE Trans Med Imaging 17:463, 1998). Those of tumor, blood
and marrow, and all concentrations, are design choices: they overlap between tumor types on purpose, so that a
diagnosis must come from shape and place and not from brightness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: Relaxivity of a gadolinium chelate, per mM and second: what 1 mM adds to 1/T1 and to 1/T2.
R1, R2 = 4.5, 5.5


@dataclass(frozen=True)
class Tissue:
    """T1 and T2 in ms, proton density (CSF = 1), and the gadolinium that it takes up in mM."""

    t1: float
    t2: float
    density: float
    gadolinium: float = 0.0


TISSUES = {
    "gray matter": Tissue(1400, 99, 0.82, 0.02),
    "white matter": Tissue(900, 75, 0.70, 0.012),
    "csf": Tissue(4200, 1500, 1.00, 0.0),
    "skull": Tissue(400, 5, 0.10, 0.0),
    "fat": Tissue(370, 90, 0.90, 0.0),
    "scalp": Tissue(1000, 45, 0.80, 0.15),
    "dura": Tissue(1200, 45, 0.60, 0.35),
    "edema": Tissue(1500, 150, 0.88, 0.03),
    "enhancing tumor": Tissue(1600, 110, 0.85, 0.80),
    "necrosis": Tissue(2400, 260, 0.95, 0.0),
    "non-enhancing tumor": Tissue(1700, 140, 0.87, 0.02),
    "meningioma": Tissue(1400, 85, 0.80, 0.90),
    "adenoma": Tissue(1350, 90, 0.80, 0.50),
    "pituitary gland": Tissue(1200, 80, 0.80, 0.90),
    # Needed to draw a head, not a diagnosis.
    "air": Tissue(1000, 10, 0.0, 0.0),
    "muscle": Tissue(1150, 35, 0.70, 0.06),
    "marrow": Tissue(600, 50, 0.45, 0.0),
    "mucosa": Tissue(1300, 80, 0.80, 0.15),
    "blood": Tissue(1700, 25, 0.75, 0.90),  # short T2: stands in for the flow void of spin echoes
}


def relaxation(tissue: Tissue, gadolinium: float | None = None) -> tuple[float, float]:
    """T1 and T2 (ms) of a tissue that holds contrast agent: 1/T' = 1/T + r C.

    Args:
        tissue: the row of the table.
        gadolinium: concentration in mM; by default what the tissue takes up.
    """
    c = tissue.gadolinium if gadolinium is None else gadolinium
    return 1 / (1 / tissue.t1 + R1 * c / 1000), 1 / (1 / tissue.t2 + R2 * c / 1000)


def spin_echo(t1, t2, density, tr: float, te: float):
    """Spin-echo signal PD (1 - exp(-TR/T1)) exp(-TE/T2); times in ms, arrays broadcast."""
    return density * (1 - np.exp(-tr / np.asarray(t1))) * np.exp(-te / np.asarray(t2))


def inversion_recovery(t1, t2, density, tr: float, te: float, ti: float):
    """Inversion-recovery spin echo PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2); FLAIR is one, with a long TI."""
    t1 = np.asarray(t1)
    return density * np.abs(1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / np.asarray(t2))


def nulling_ti(t1: float, tr: float) -> float:
    """The inversion time (ms) at which a tissue of this T1 gives no signal: T1 (ln 2 - ln(1 + exp(-TR/T1)))."""
    return t1 * (math.log(2) - math.log1p(math.exp(-tr / t1)))


@dataclass(frozen=True)
class Sequence:
    """Settings of the scanner, times in ms. With ``ti`` it is an inversion recovery; ``contrast``: agent was given."""

    tr: float
    te: float
    ti: float | None = None
    contrast: bool = False


#: The four BraTS modalities, in the channel order of the per-slice HDF5 files.
SEQUENCES = {
    "flair": Sequence(9000, 120, nulling_ti(TISSUES["csf"].t1, 9000)),
    "t1": Sequence(600, 10),
    "t1c": Sequence(600, 10, contrast=True),
    "t2": Sequence(5000, 100),
}


def signal(tissue: Tissue | str, sequence: Sequence | str, gadolinium: float | None = None) -> float:
    """Signal of one tissue under one sequence, arbitrary units.

    Args:
        tissue: a :class:`Tissue`, or its name in :data:`TISSUES`.
        sequence: a :class:`Sequence`, or its name in :data:`SEQUENCES`.
        gadolinium: concentration in mM in place of the table's; without effect where the sequence has no contrast
            agent.
    """
    tissue = TISSUES[tissue] if isinstance(tissue, str) else tissue
    sequence = SEQUENCES[sequence] if isinstance(sequence, str) else sequence
    t1, t2 = relaxation(tissue, gadolinium if sequence.contrast else 0.0)
    if sequence.ti is None:
        return float(spin_echo(t1, t2, tissue.density, sequence.tr, sequence.te))
    return float(inversion_recovery(t1, t2, tissue.density, sequence.tr, sequence.te, sequence.ti))


def relative_signals(sequence: Sequence | str, gadolinium: dict[str, float] | None = None) -> dict[str, float]:
    """Signals of all tissues, with white matter = 1. ``gadolinium`` replaces single concentrations (mM)."""
    doses = gadolinium or {}
    white = signal("white matter", sequence)
    return {name: signal(name, sequence, doses.get(name)) / white for name in TISSUES}


def rician(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of an image with Gaussian noise on both its real and imaginary part (Gudbjartsson and Patz, 1995)."""
    noise = rng.standard_normal((2, *image.shape), dtype=np.float32) * np.float32(sigma)
    return np.hypot(image + noise[0], noise[1])
