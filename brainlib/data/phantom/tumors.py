"""Three kinds of tumor, each a shape that pushes on the brain, paints its tissues and knows its own true labels.

A glioma grows out of the brain (Fisher-Kolmogorov), a meningioma pushes in from the dura, an adenoma rises out of the
sella. That a tumor displaces its surroundings and is drawn from a growth model follows TumorSim (Prastawa et al.,
Medical Image Analysis 13:297, 2009); sizes and uptakes are design choices.

All three share one interface: ``origin`` gives the position from which the tissue at a point was pushed, and
``layers`` the tissues to paint over the head. Points are (3, N) mm in patient space.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from ..brats.transform import LABELS
from .anatomy import SELLA, Head, Layers, Place, template
from .fields import SmoothField, ellipsoid, linear, rotation, soft
from .growth import grow

#: Values of the label map, as BraTS numbers them.
NCR, ED, ET = (LABELS[name] for name in ("NCR", "ED", "ET"))
#: Gadolinium in an enhancing tumor, mM: one law for all three kinds, or brightness would give the diagnosis away.
UPTAKE = (0.2, 0.8)

_BOX_MM, _STEP = 96, 2.0  # the growth grid: a cube around the seed


class Tumor:
    """What the three kinds have in common: a center, a reach, a strength of mass effect."""

    center: np.ndarray  # (3,) mm, patient space
    reach: float  # mm: nothing of the tumor lies farther from the center
    push: float = 0.0  # share of the distance to the center by which tissue next to the center has moved
    uptake: dict[str, float]  # gadolinium in mM, by tissue

    def origin(self, points: np.ndarray, brain: np.ndarray) -> np.ndarray:
        """Where the tissue that now lies at ``points`` came from: nearer to the center.

        ``brain`` is the signed distance of the points to the brain's surface: skull and skin do not move.
        """
        offset = points - self.center[:, None]
        pull = self.push * np.exp(-(offset**2).sum(0) / np.float32(2 * (0.75 * self.reach) ** 2))
        return (points - offset * (pull * np.clip(-brain / 10, 0, 1))).astype(np.float32)

    def layers(self, place: Place) -> Layers:
        """Tissue layers of the tumor, to be painted over the head's."""
        raise NotImplementedError

    def core(self, layers: Layers) -> np.ndarray:
        """Coverage of the tumor without its edema, from its own layers."""
        solid = np.zeros_like(layers[0][1])
        for name, cover in layers:
            solid = solid * (1 - cover) + (cover if name not in ("edema", "csf", "dura") else 0)
        return solid


class Glioma(Tumor):
    """A diffuse glioma: necrotic center, enhancing rim, edema along white matter.

    High grade: the outer 3-7 mm of the core enhance. Low grade: none or little of it does.

    Args:
        head: the person.
        rng: the tumor's own random numbers.
        volume: visible volume (u > 0.16) in ml at which growth stops, drawn between these two.
        high_grade: whether the rim enhances.
    """

    def __init__(
        self, head: Head, rng: np.random.Generator, volume: tuple[float, float] = (20, 90), high_grade: bool = True
    ):
        self.high_grade = high_grade
        self.center = self._seed(head, rng)
        axis = np.arange(-_BOX_MM / 2, _BOX_MM / 2, _STEP, dtype=np.float32)
        grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
        points = grid.reshape(3, -1) + self.center[:, None]
        place = head.place(points)
        gray, white, brain = (part.reshape(grid.shape[1:]) for part in (place.gray, place.white, place.brain))
        inside = (brain < 0) & (gray + white > 0.5)
        d_white, rho = rng.uniform(0.1, 0.5), rng.uniform(0.015, 0.05)
        diffusivity = np.where(inside, d_white * (0.1 + 0.9 * white), 0).astype(np.float32)
        start = np.exp(-(grid**2).sum(0) / np.float32(2 * 3.0**2))
        self.volume_ml = rng.uniform(*volume)
        u, self.days = grow(diffusivity, rho, start, spacing=_STEP, volume=self.volume_ml)
        # Smooth noise on u makes the outline of core and edema irregular.
        u = u * np.exp(np.float32(0.35) * SmoothField(rng, 13)(points).reshape(u.shape))
        u = gaussian_filter(u, 0.6)
        # A diffuse tumor (large D, small rho) may nowhere reach 0.6: its densest fifth is then the core.
        core = u > min(0.6, np.quantile(u[u > 0.16], 0.8))
        depth = (distance_transform_edt(core) - distance_transform_edt(~core)) * _STEP
        self.maps = np.stack([u, gaussian_filter(depth.astype(np.float32), 0.7)])  # and mm below the core's surface
        self.edge = rng.uniform(0.08, 0.2)
        self.rim_mm, self.rim = rng.uniform(3, 7), SmoothField(rng, 16)
        self.patch, self.patchy = SmoothField(rng, 10), rng.uniform(1.0, 2.4)
        visible = np.linalg.norm(grid[:, u > self.edge], axis=0)
        self.reach = float(visible.max()) if visible.size else 6.0
        self.push = rng.uniform(0.1, 0.3)
        self.uptake = {"enhancing tumor": rng.uniform(*UPTAKE)}

    @staticmethod
    def _seed(head: Head, rng: np.random.Generator) -> np.ndarray:
        """A place in white matter above the tentorium: not in brainstem or cerebellum."""
        low, high = np.array([[-48.0], [-80], [-26]]), np.array([[48.0], [50], [50]])
        while True:
            atlas = rng.uniform(low, high, (3, 64)).astype(np.float32)
            atlas = atlas[:, (atlas[1] > -45) | (atlas[2] > 0)]  # stay above the tentorium
            white = (head.matter(atlas)[1] > 0.6) & (template().distances(atlas)[0] < -9)
            if white.any():
                return head.from_atlas(atlas[:, white][:, :1])[:, 0]

    def layers(self, place: Place) -> Layers:
        origin, white = place.origin, place.white
        matter = np.clip(1.6 * (place.gray + white), 0, 1) * soft(template().distances(place.atlas)[0] + 0.6)
        index = (origin - self.center[:, None] + _BOX_MM / 2) / np.float32(_STEP)
        u, depth = linear(self.maps, index)
        edema = soft((self.edge - u) * 9, 1.0) * np.clip(0.15 + 1.1 * white, 0, 1) * matter
        core = soft(-depth, 1.5) * np.clip(2 * matter, 0, 1)
        rim = self.rim_mm * np.exp(0.35 * self.rim(origin))
        inner = soft(rim - depth, 1.5) * core
        if self.high_grade:
            return [("edema", edema), ("enhancing tumor", core), ("necrosis", inner)]
        spots = core * soft(self.patchy - self.patch(origin), 0.6)
        return [("edema", edema), ("non-enhancing tumor", core), ("enhancing tumor", spots)]

    def labels(self, layers: Layers) -> np.ndarray:
        """True label map (uint8: 0, NCR, ED, ET) from this tumor's layers: what covers most of a voxel."""
        values = {"edema": ED, "enhancing tumor": ET, "necrosis": NCR, "non-enhancing tumor": NCR}
        label = np.zeros(layers[0][1].shape, np.uint8)
        for name, cover in layers:
            label[cover > 0.5] = values[name]
        return label

    def volumes(self, head: Head) -> dict[str, float]:
        """True volumes in ml, counted on a 2 mm grid: necrosis, edema, enhancing tumor, tumor core."""
        axis = np.arange(-_BOX_MM / 2, _BOX_MM / 2, _STEP, dtype=np.float32)
        points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1) + self.center[:, None]
        label = self.labels(self.layers(head.place(points, self)))
        ml = {name: float((label == value).sum() * _STEP**3 / 1000) for name, value in LABELS.items()}
        return {
            "necrosis_ml": ml["NCR"],
            "edema_ml": ml["ED"],
            "enhancing_ml": ml["ET"],
            "core_ml": ml["NCR"] + ml["ET"],
        }


class Meningioma(Tumor):
    """A tumor of the dura: broad base on the skull, sharp edge, a cleft of CSF against the brain, even enhancement.

    Args:
        head: the person.
        rng: the tumor's own random numbers.
        radius: in mm, drawn between these two.
    """

    def __init__(self, head: Head, rng: np.random.Generator, radius: tuple[float, float] = (10, 22)):
        self.radius = rng.uniform(*radius)
        surface = self._surface(rng)
        inward = self._inward(surface)
        self.center = head.from_atlas((surface + 0.6 * self.radius * inward)[:, None].astype(np.float32))[:, 0]
        turn = rotation(rng.uniform(0, np.pi, 3))  # an ellipsoid, its axes anywhere
        self.shape = (turn / rng.uniform(0.8, 1.25, 3)).astype(np.float32)
        self.rough = SmoothField(rng, 12)
        self.edema_mm = rng.uniform(2, 10) if rng.random() < 0.5 else 0.0
        self.reach = self.radius * 1.25 + 2
        self.push = rng.uniform(0.15, 0.35)
        self.uptake = {"meningioma": rng.uniform(*UPTAKE)}

    @staticmethod
    def _surface(rng: np.random.Generator) -> np.ndarray:
        """A point of the dura: convexity, parasagittal, or skull base around the sphenoid bone."""
        kind = rng.choice(3, p=[0.4, 0.2, 0.4])
        low, high = (
            ((-75, -105, -10), (75, 75, 80)),
            ((-14, -100, 10), (14, 70, 80)),
            ((-42, 0, -45), (42, 62, -8)),
        )[kind]
        while True:
            points = rng.uniform(low, high, (256, 3)).astype(np.float32).T
            near = np.abs(template().distances(points)[0]) < 1.5
            if near.any():
                return points[:, near][:, 0]

    @staticmethod
    def _inward(point: np.ndarray) -> np.ndarray:
        """Unit vector from the surface into the brain: against the gradient of the distance."""
        probe = np.repeat(point[:, None], 6, 1) + np.repeat(np.eye(3), 2, 1) * np.tile([4.0, -4.0], 3)
        value = template().distances(probe.astype(np.float32))[0]
        gradient = value[0::2] - value[1::2]
        return -gradient / (np.linalg.norm(gradient) + 1e-6)

    def layers(self, place: Place) -> Layers:
        brain, rough = place.brain, self.rough(place.points)
        offset = self.shape @ (place.points - self.center[:, None])
        ball = np.sqrt((offset**2).sum(0)) - self.radius * (1 + 0.08 * rough)
        inside = soft(brain - 2.5)
        layers: Layers = []
        if self.edema_mm:
            layers.append(("edema", soft(ball - self.edema_mm * (1 + 0.5 * rough), 3) * place.white * soft(brain)))
        layers.append(("csf", soft(ball - 1.6) * inside * np.clip(0.6 + 0.4 * rough, 0, 1)))
        tail = soft(ball - 12) * soft(np.abs(brain - 1.8) - 1.1)
        layers += [("meningioma", 0.8 * tail), ("meningioma", soft(ball) * inside)]
        return layers

    def core(self, layers: Layers) -> np.ndarray:
        return layers[-1][1]  # the dural tail is not counted


class Adenoma(Tumor):
    """A pituitary adenoma: an ellipsoid in the sella that grows upward, in about a third of patients with a cyst.

    Args:
        head: the person.
        rng: the tumor's own random numbers.
        scale: factor on the radii (9, 8, 10) mm, drawn between these two.
    """

    def __init__(self, head: Head, rng: np.random.Generator, scale: tuple[float, float] = (0.7, 1.5)):
        factor = rng.uniform(*scale)
        self.radii = np.array([9, 8, 10]) * factor * rng.uniform(0.88, 1.12, 3)
        seat = SELLA + (rng.normal(0, 1.5), rng.normal(0, 1), 0)
        # A small one fills the sella; a larger one also rises through its roof, as a second, wider lobe.
        rise = max(0.0, self.radii[2] - 8) * 1.4
        centers = np.stack([seat, seat + (rng.normal(0, 1.5), 0, rise)], 1).astype(np.float32)
        self.seat, self.center = head.from_atlas(centers).T
        self.rough = SmoothField(rng, 9)
        self.cyst = None
        if rng.random() < 0.35:
            self.cyst = (self.center + rng.uniform(-0.3, 0.3, 3) * self.radii, self.radii * rng.uniform(0.35, 0.6))
        self.reach = float(self.radii.max()) * 1.2 + 1 + rise
        self.push = 0.2
        self.uptake = {"adenoma": rng.uniform(*UPTAKE)}

    def layers(self, place: Place) -> Layers:
        bumpy = 1.1 * self.rough(place.points)
        low = ellipsoid(place.points, self.seat, np.minimum(self.radii, (9, 8, 7)))
        body = np.minimum(low, ellipsoid(place.points, self.center, self.radii)) + bumpy
        layers: Layers = [("csf", 0.8 * soft(body - 1)), ("adenoma", soft(body))]
        if self.cyst:
            layers.append(("necrosis", soft(np.maximum(ellipsoid(place.points, *self.cyst) + bumpy, body + 1.5))))
        return layers
