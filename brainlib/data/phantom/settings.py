"""Every choice behind one phantom set, in one frozen record that is hashed, stored and shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PhantomSettings:
    """What a phantom set holds. The defaults are the demo set of the course.

    Classification set: ``patients_per_class`` patients in each of four classes, ``slices_per_patient`` slices each.
    Testing takes every slice of ``test_patients`` patients per class, and ``leaked_slices`` slices of another
    ``leaked_patients`` per class whose remaining slices stand in Training. So a stated share of the official test
    slices (:attr:`leak`, one third in the demo set) shows a patient that the model has trained on, as the real set
    does, while a split by patient leaks nothing.

    Segmentation set: ``volumes`` glioma patients, axial slices ``slice_start`` to ``slice_stop`` (exclusive) in steps
    of ``slice_step``, counted as in BraTS (0-154, 1 mm apart).
    """

    patients_per_class: int = 33
    slices_per_patient: int = 8
    test_patients: int = 5
    leaked_patients: int = 10
    leaked_slices: int = 2
    size_px: tuple[int, int] = (160, 256)  # side of a square JPEG, drawn per patient
    field_mm: tuple[float, float] = (245.0, 290.0)  # field of view, drawn per patient: sets the black margin
    sites: int = 5
    volumes: int = 24
    low_grade: int = 5  # how many of the segmentation patients carry a low-grade glioma
    slice_start: int = 39
    slice_stop: int = 116
    slice_step: int = 1

    def __post_init__(self) -> None:
        if self.test_patients + self.leaked_patients >= self.patients_per_class:
            raise ValueError("test_patients + leaked_patients must leave patients for Training")
        if self.leaked_slices >= self.slices_per_patient:
            raise ValueError("leaked_slices must be smaller than slices_per_patient")
        if not 0 <= self.slice_start < self.slice_stop <= 155 or self.slice_step < 1:
            raise ValueError("slices must lie in 0 to 155, with a step of at least 1")

    @classmethod
    def tiny(cls) -> PhantomSettings:
        """Three patients per class and two volumes: made in seconds, for tests."""
        return cls(
            patients_per_class=3,
            slices_per_patient=3,
            test_patients=1,
            leaked_patients=1,
            leaked_slices=1,
            size_px=(128, 144),
            volumes=2,
            low_grade=1,
            slice_start=60,
            slice_stop=100,
            slice_step=20,
        )

    @property
    def slices(self) -> range:
        """The axial slices of the segmentation set."""
        return range(self.slice_start, self.slice_stop, self.slice_step)

    @property
    def leak(self) -> float:
        """Share of Testing that shows a patient who is also in Training."""
        leaked = self.leaked_patients * self.leaked_slices
        return leaked / (leaked + self.test_patients * self.slices_per_patient)
