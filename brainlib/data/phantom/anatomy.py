"""One head: the ICBM 152 brain, individually warped, inside a drawn skull, scalp, face and neck.

The brain is the template of Fonov et al. (NeuroImage 54:313, 2011), the copy that nilearn carries: T1 image and
probabilities of gray and white matter at 1 mm. It has no skull, so everything around the brain is drawn from two
distances (to the brain's surface and to the skin) and a few ellipsoids and rods. Those are design choices: they make
a plausible picture, not an atlas of the head.

A head is never stored as a volume. It is a function from points to *layers* (tissue name, coverage), painted one over
the other, so a slice in any plane and at any resolution costs only its own pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_fill_holes, distance_transform_edt, gaussian_filter, map_coordinates

from .fields import SmoothField, capsule, ellipsoid, linear, rotation, soft

#: A coverage in [0, 1] for each point, to be painted over what lies below it.
Layers = list[tuple[str, np.ndarray]]

#: Center of the sella turcica, the seat of the pituitary gland, in MNI millimeters.
SELLA = np.array([0.0, 3.0, -34.0])

_ORIGIN = np.array([-120.0, -150.0, -170.0], np.float32)  # corner of the grid on which distances are kept
_SHAPE = (121, 141, 141)
_STEP = 2.0


class Template:
    """The atlas, once per process: gray and white matter at 1 mm, distances to the brain and to the skin at 2 mm."""

    def __init__(self) -> None:
        folder = resources.files("nilearn") / "datasets" / "data"
        maps = {}
        for name in ("t1", "gm", "wm"):
            with resources.as_file(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz") as path:
                image = nib.load(path)
                maps[name] = np.asarray(image.dataobj, dtype=np.float32) / 255
        self.offset = image.affine[:3, 3].astype(np.float32)[:, None]
        self.matter = np.stack([maps["gm"], maps["wm"]])

        axes = [np.arange(n, dtype=np.float32) * _STEP + o for n, o in zip(_SHAPE, _ORIGIN, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)
        inside = map_coordinates(maps["t1"] + maps["gm"] + maps["wm"], grid - self.offset, order=1) > 0.15
        inside = inside.reshape(_SHAPE)
        # Close the sulci and ventricles (8 mm): what is left is the space inside the dura.
        closed = distance_transform_edt(distance_transform_edt(~inside) * _STEP <= 8) * _STEP > 8
        brain = _distance(binary_fill_holes(closed | inside), 0.8)
        skin = _distance(_head(grid, _distance(closed, 3.0).reshape(-1)).reshape(_SHAPE) < 0, 1.5)
        self.surfaces = np.stack([brain, skin])

    def read_matter(self, points: np.ndarray) -> np.ndarray:
        """Probabilities (2, N) of gray and white matter at points (3, N) in MNI mm."""
        return linear(self.matter, points - self.offset)

    def distances(self, points: np.ndarray) -> np.ndarray:
        """Signed distances (2, N) in mm to the brain's surface and to the skin, negative inside."""
        return linear(self.surfaces, (points - _ORIGIN[:, None]) / np.float32(_STEP))


def _distance(mask: np.ndarray, blur: float) -> np.ndarray:
    """Signed distance in mm (negative inside), rounded off a little so that voxel steps do not show."""
    distance = (distance_transform_edt(~mask) - distance_transform_edt(mask)) * _STEP
    return gaussian_filter(distance.astype(np.float32), blur)


def _head(points: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Outline of the head: cranium, face, nose, jaw and neck, melted together."""
    parts = [
        brain - 13,
        ellipsoid(points, (0, 42, -52), (58, 52, 58)),
        ellipsoid(points, (0, 96, -56), (13, 17, 20)),
        ellipsoid(points, (0, 48, -102), (42, 42, 36)),
        capsule(points * np.array([[1.0], [0.9], [1.0]], np.float32), (0, -22, -90), (0, -30, -190), 56),
    ]
    # A smooth minimum: log-sum-exp with a scale of 7 mm rounds the seams.
    return -7 * np.log(sum(np.exp(-np.clip(part, -60, 60) / 7) for part in parts))


@lru_cache(maxsize=1)
def template() -> Template:
    """The atlas, loaded on first use."""
    return Template()


@dataclass
class Place:
    """Points, and what the head knows about them. Arrays of N points; positions (3, N) in mm.

    A tumor pushes tissue: what now lies at ``points`` was at ``origin``, which the atlas knows as ``atlas``. Skull
    and skin stay; for them ``still`` is the atlas position. ``brain`` and ``skin`` are signed distances in mm of
    ``still``.
    """

    points: np.ndarray
    still: np.ndarray
    brain: np.ndarray
    skin: np.ndarray
    origin: np.ndarray
    atlas: np.ndarray
    gray: np.ndarray
    white: np.ndarray

    def at(self, mask: np.ndarray) -> Place:
        """The same for the points that ``mask`` chooses."""
        return Place(*(np.ascontiguousarray(getattr(self, name)[..., mask]) for name in self.__dataclass_fields__))


class Head:
    """One person: an affine (scale 0.94-1.06, a slight turn of the head) and a smooth warp of the template.

    Args:
        rng: the person's own random numbers.
    """

    def __init__(self, rng: np.random.Generator):
        turn = rotation(np.radians(rng.normal(0, 4, 3).clip(-9, 9)))
        self.matrix = (turn / rng.uniform(0.94, 1.06, 3)).astype(np.float32)  # patient space to atlas space
        self.center = np.array([0, -18, 0], np.float32)[:, None]
        self.warp, self.ripple = SmoothField(rng, 70, 16, channels=3), SmoothField(rng, 20, channels=3)
        self.shell, self.fold, self.grain = SmoothField(rng, 45), SmoothField(rng, 13), SmoothField(rng, 9)
        self.texture = SmoothField(rng, 2.4, 64)
        self.fat_mm, self.skull_mm = rng.uniform(2.5, 6), rng.uniform(4, 6.5)
        self.marrow, self.sulci = rng.uniform(0.2, 0.7), rng.uniform(0.25, 0.6)
        self.gland = rng.uniform(0.8, 1.25)
        self.sinus = rng.uniform(0.8, 1.2, 3)

    def to_atlas(self, points: np.ndarray) -> np.ndarray:
        """Atlas position (MNI mm) of points (3, N) in patient space."""
        moved = self.matrix @ (points - self.center) + self.center
        return moved + np.float32(4.5) * self.warp(points) + np.float32(1.1) * self.ripple(points)

    def from_atlas(self, points: np.ndarray) -> np.ndarray:
        """Patient position of atlas points (3, N): the inverse of :meth:`to_atlas`, by fixed-point iteration."""
        found = np.asarray(points, np.float32).copy()
        for _ in range(12):
            found += points - self.to_atlas(found)
        return found

    def place(self, points: np.ndarray, tumor=None) -> Place:
        """Look points (3, N) in patient space up; ``tumor``: the one whose mass effect moves the brain."""
        still = self.to_atlas(points)
        brain, skin = template().distances(still)
        origin = tumor.origin(points, brain) if tumor else points
        atlas = self.to_atlas(origin) if tumor else still
        return Place(points, still, brain, skin, origin, atlas, *self.matter(atlas))

    def matter(self, atlas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gray- and white-matter fractions at atlas points; the rest, inside the brain's surface, is CSF.

        The template is an average of 152 people and so is blurred: the probabilities are sharpened, and sulci of
        this person's own, the zero lines of a smooth random field, are cut into the cortex.
        """
        gray, white = template().read_matter(atlas)
        rest = np.clip(1 - gray - white, 0, 1)
        gray, white, rest = gray**1.7, white**1.7, rest**1.7
        total = gray + white + rest + np.float32(1e-6)
        gray, white = gray / total, white / total
        line = np.clip(1 - np.abs(self.fold(atlas)) / np.float32(0.22), 0, 1)
        return gray * (1 - np.float32(self.sulci) * line), white

    def layers(self, place: Place, *, head: bool = True, gland: bool = True) -> Layers:
        """Tissue layers, to be painted in order.

        Args:
            head: also draw what lies around the brain.
            gland: draw the normal, enhancing pituitary gland (an adenoma replaces it).
        """
        q, brain, gray, white = place.atlas, place.brain, place.gray, place.white
        layers = self._around(place) if head else []
        layers.append(("csf", soft(brain - 2.5)))
        if head:
            dura = soft(np.abs(brain - 2.8) - 0.6) * np.clip(0.35 + 0.35 * self.shell(place.still), 0, 0.8)
            layers.append(("dura", dura))
        layers += self._vessels(q, brain, gray + white)
        matter = (gray + white) * soft(brain)
        layers.append(("gray matter", matter))
        layers.append(("white matter", matter * white / (gray + white + np.float32(1e-6))))
        if head:  # brainstem and cord continue below the edge of the template
            canal = capsule(q, (0, -40, -66), (0, -52, -170), 10.0)
            layers += [("csf", soft(canal)), ("white matter", soft(canal + 4))]
            layers += self._sella(q, gland)
        return layers

    def _around(self, place: Place) -> Layers:
        """Skin, fat, muscle, bones, orbits and the air of nose, throat and sinuses."""
        q, brain, skin = place.still, place.brain, place.skin
        shell, grain = self.shell(q), self.grain(q)
        below = np.clip((-30 - q[2]) / 40, 0, 1)  # 0 at the vault, 1 in the face and neck
        behind = np.clip((-50 - q[1]) / 30, 0, 1)
        fat = self.fat_mm * np.exp(0.45 * shell + 0.15 * grain) * (1 + below * (0.5 + behind))
        mirrored = np.stack([np.abs(q[0]), q[1], q[2]])
        deep = soft(skin + 5)

        # Muscle in bundles, with sheets of fat between them: the zero lines of a smooth field.
        layers: Layers = [("muscle", soft(skin))]
        upright = self.grain(q * np.array([[1.1], [0.9], [0.3]], np.float32))
        sheets = np.clip(1.1 - np.abs(upright) / np.float32(0.3), 0, 1) * soft(9 - brain, 6)
        layers.append(("fat", 0.4 * sheets * deep))
        cheek = ellipsoid(mirrored, (46, 44, -66), (16, 20, 24)) + 4 * grain
        layers.append(("fat", 0.85 * soft(cheek, 6) * deep))
        layers.append(("fat", soft(skin + 1.8) * soft(-(skin + 1.8 + fat))))
        layers.append(("scalp", soft(skin) * soft(-(skin + 1.8))))
        # The temporal muscle fills the hollow between skull and fat on both sides.
        temple = ellipsoid(mirrored, (64, 14, -18), (13, 36, 36)) + 1.5 * grain
        layers.append(("muscle", soft(temple) * soft(skin + 3)))

        # Face and skull base: dark bone with brighter marrow, mucosa and air.
        base = soft(ellipsoid(q, (0, 16, -52), (44, 44, 17)) + 4 * grain, 6) * soft(skin + 12)
        layers.append(("skull", base * soft(0.1 - np.abs(grain), 0.7)))
        layers.append(("mucosa", soft(ellipsoid(q, (0, 58, -60), (17, 28, 22)) + 2 * grain, 3) * deep))
        for center, radii, cells in (
            ((0, 62, -62), (13, 28, 20), -0.3),  # nasal cavity
            ((0, 52, -40), (10, 18, 10), 0.15),  # ethmoid cells
            ((27, 46, -62), (13, 15, 15), -2.0),  # maxillary sinus
            ((0, 4, -88), (9, 7, 26), -2.0),  # throat
            ((54, -34, -46), (11, 14, 14), 0.0),  # mastoid cells
        ):
            air = soft(ellipsoid(mirrored, center, np.array(radii) * self.sinus[0]) + 1.5 * grain)
            layers.append(("air", air * soft(cells - grain, 0.4) * deep))
        tongue = ellipsoid(q, (0, 40, -98), (20, 30, 16)) + 2 * grain
        layers.append(("muscle", soft(tongue, 3)))
        for start, end in (
            ((44, 4, -62), (42, 14, -98)),
            ((42, 14, -98), (10, 76, -112)),
            ((10, 76, -112), (0, 80, -112)),
        ):
            jaw = capsule(mirrored, start, end, 6) + grain
            layers += [("skull", 0.9 * soft(jaw) * deep), ("marrow", soft(jaw + 2.5) * deep)]
        teeth = capsule(mirrored, (26, 52, -90), (8, 76, -92), 5) + grain
        layers.append(("skull", 0.9 * soft(teeth) * deep))
        spine = capsule(q, (0, -20, -84), (0, -30, -170), 12)
        discs = (0.5 + 0.5 * np.cos(q[2] * (2 * np.pi / 18) + shell)) ** 6
        layers += [("skull", 0.8 * soft(spine)), ("marrow", soft(spine + 2, 2) * (1 - 0.7 * discs))]

        orbit = ellipsoid(mirrored, (31, 50, -36), (17, 25, 16)) + grain
        layers.append(("fat", soft(orbit) * soft(skin + 4)))
        for dx, dz in ((0, 10), (0, -10), (10, 0), (-10, 0)):
            rod = capsule(mirrored, (22 + dx * 0.2, 30, -34), (31 + dx, 58, -36 + dz), 1.8)
            layers.append(("muscle", soft(rod)))
        layers.append(("white matter", soft(capsule(mirrored, (14, 22, -30), (31, 55, -36), 2.2))))
        globe = ellipsoid(mirrored, (31, 62, -36), (12, 12, 12))
        layers += [("scalp", soft(globe) * soft(skin + 1)), ("csf", soft(globe + 1.2) * soft(skin + 2))]

        # The vault: inner and outer table with marrow between them, of varying thickness.
        thick = self.skull_mm * np.exp(0.25 * shell + 0.1 * grain) * (1 + 0.3 * (q[1] < -60))
        layers.append(("skull", soft(brain - 3 - thick) * soft(2 - brain) * soft(skin + 3.5)))
        middle = np.abs(brain - 3 - thick / 2)
        layers.append(
            ("marrow", self.marrow * soft(middle - thick / 5) * soft(-0.3 - shell - 0.4 * grain, 1.5) * soft(skin + 4))
        )
        petrous = ellipsoid(mirrored, (36, -24, -42), (22, 9, 9))
        layers.append(("skull", 0.9 * soft(petrous)))
        layers.append(("marrow", soft(ellipsoid(q, (0, -13, -52), (9, 7, 16)))))  # clivus
        frontal = ellipsoid(mirrored, (9, 77, -16), np.array((12, 5, 13)) * self.sinus[1])
        sphenoid = ellipsoid(q, (0, 18, -48), np.array((13, 12, 9)) * self.sinus[2])
        layers += [("air", soft(frontal) * deep), ("air", soft(sphenoid + grain))]
        return layers

    def _vessels(self, q: np.ndarray, brain: np.ndarray, matter: np.ndarray) -> Layers:
        """Venous sinuses, the large arteries at the base, the falx and the choroid plexus: all enhance."""
        side = np.abs(q[0])
        mirrored = np.stack([side, q[1], q[2]])
        empty = np.clip(1 - 1.5 * matter, 0, 1)
        vault = soft(-10 - q[2] + 0.6 * (q[1] + 40), 8)
        layers: Layers = [("blood", soft(side - 3.2 + np.abs(brain - 1) * 0.7, 1.5) * vault)]
        falx = soft(np.abs(q[0] + 1.2 * self.shell(q)) - 0.7) * soft(15 - q[2], 10) * soft(brain)
        layers.append(("dura", 0.9 * falx * empty))
        for start, end, radius in (
            ((3, -104, -18), (48, -76, -30), 3.2),  # transverse sinus
            ((48, -76, -30), (46, -44, -52), 3.0),  # sigmoid sinus
            ((13, -6, -46), (12, 8, -32), 2.4),  # carotid siphon
            ((12, 8, -32), (11, 2, -20), 2.0),
            ((10, 3, -20), (40, 6, -16), 1.5),  # middle cerebral artery
            ((2, 8, -18), (2, 40, 2), 1.2),  # anterior cerebral artery
            ((0, -20, -42), (0, -13, -16), 1.7),  # basilar artery
            ((1, -36, 2), (1, -52, 14), 1.8),  # great cerebral vein
        ):
            layers.append(("blood", soft(capsule(mirrored, start, end, radius))))
        plexus = capsule(mirrored, (20, -38, 14), (26, -36, -2), 5)
        layers.append(
            ("pituitary gland", 0.8 * soft(plexus) * empty * soft(0.2 - self.grain(q), 0.8) * soft(brain + 20, 4))
        )
        return layers

    def _sella(self, q: np.ndarray, gland: bool) -> Layers:
        """Cavernous sinuses at both sides of the sella, the stalk, and the normal gland."""
        mirrored = np.stack([np.abs(q[0]), q[1], q[2]])
        layers: Layers = [("blood", 0.6 * soft(ellipsoid(mirrored, SELLA + (12, 0, -1), (4.5, 9, 6))))]
        if gland:
            layers.append(("pituitary gland", soft(ellipsoid(q, SELLA, np.array((6.5, 5, 4.2)) * self.gland))))
            layers.append(("pituitary gland", soft(capsule(q, SELLA + (0, -1, 3), SELLA + (0, -3, 14), 1.2))))
        return layers
