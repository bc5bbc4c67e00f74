"""Segmenters: what a model is given, that patients stay apart, that a run goes on, and what its record says."""

import json
import math
import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from data.brats_files import write_nifti

from brainlib.data import DataError, SegmentationData
from brainlib.data.augment_masks import SegmentationAugment
from brainlib.data.brats import min_max, region_masks, standardize
from brainlib.data.brats.dataset import _load
from brainlib.results import Record, load_model, load_records, save_record
from brainlib.segmentation import PIXEL_METRICS, Counts
from brainlib.segmenters import (
    MIDDLE,
    SCORED,
    SEGMENTER_RECIPES,
    WHOLE,
    _run_name,
    bootstrap_mean,
    bootstrap_pooled,
    convert_masks,
    describe_segmenter,
    get_segmenter_recipe,
    outline,
    recorded_segmenters,
    score_outlines,
    score_segmenter,
    split_patients,
    split_slices,
    stratify,
    summarize_runs,
    train_segmenter,
)
from brainlib.train import fit

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (32, 48, 155)
PATIENTS = 9
QUIET = {"progress": False}
CLASSIC = replace(get_segmenter_recipe("classic_unet"), arguments={"n_filters": 2})
COMPACT = replace(
    get_segmenter_recipe("compact_unet"),
    crop=(16, 32),
    draws=48,
    epochs=4,
    arguments={"in_channels": 12, "widths": (4, 6, 8)},
)


def patient(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A brain of noise with a tumor whose parts are seen in one channel each; the brain lies off the middle."""
    rng = np.random.default_rng(number)
    images, labels = np.zeros((*SHAPE, 4), np.int16), np.zeros(SHAPE, np.uint8)
    brain = (slice(10, 24), slice(5, 34), slice(20, 140))
    images[brain] = rng.integers(200, 400, images[brain].shape)
    size = 4 + number % 3
    for value, channel, margin in ((2, 0, size + 1), (1, 3, size), (4, 2, size - 1)):
        part = tuple(slice(middle - margin, middle + margin) for middle in (17, 20, 80))
        labels[part] = value
        images[part][..., channel] += 900
    return images, labels


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("brats") / "brats2020"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRAINLIB_DATA", str(root.parent))
        for number in range(1, PATIENTS + 1):
            write_nifti(root, f"BraTS20_Training_{400 + number}", patient(number))
        grades = [f"BraTS20_Training_{400 + n},{'LGG' if n % 3 == 0 else 'HGG'}" for n in range(1, PATIENTS + 1)]
        (root / "name_mapping.csv").write_text("\n".join(["BraTS_2020_subject_ID,Grade", *grades]))
        yield _load(root, workers=1, shape=SHAPE)


# ---- what a model is given


def test_a_batch_is_the_slice_normalized_with_its_masks(dataset):
    slices = dataset.slices(z=range(60, 90))
    data = SegmentationData(slices)
    index = torch.tensor([5, 0, 40])
    images, labels = data.batch(index)
    prepared, masks = data.prepare(images, labels, index)
    assert data.channels == 4 and data.size == (32, 48) and len(data) == len(slices)
    assert torch.equal(prepared, min_max(images)) and prepared.dtype == torch.float32
    assert torch.equal(masks, region_masks(labels, ("NCR", "ED", "ET"))) and masks.dtype == torch.bool
    standard = replace(data, normalize="standardize")
    mean, std = slices.statistics(index)
    assert torch.equal(standard.prepare(images, labels, index)[0], standardize(images, mean, std))


def test_neighbors_are_the_slices_below_and_above_and_the_last_one_repeats(dataset):
    data = SegmentationData(dataset.slices(dataset.ids[:1], z=WHOLE), neighbors=2)
    volume = dataset.volume(dataset.ids[0])
    images, labels = data.batch(np.array([80, 0, 154]))
    assert images.shape == (3, 20, 32, 48) and data.channels == 20
    for row, positions in zip(images, ([78, 79, 80, 81, 82], [0, 0, 0, 1, 2], [152, 153, 154, 154, 154]), strict=True):
        assert np.array_equal(row.numpy(), np.concatenate([volume.images[z] for z in positions]))
    assert np.array_equal(labels[0].numpy(), volume.labels[80])
    prepared, _ = replace(data, normalize="standardize").prepare(images, labels, np.array([80, 0, 154]))
    assert prepared.shape == images.shape
    mean, std = data.slices.statistics(np.array([80]))
    for i, z in enumerate((78, 79, 80, 81, 82)):  # every neighbor by the statistics of the whole brain
        alone = standardize(torch.tensor(volume.images[z][None]), mean, std)
        assert torch.allclose(prepared[0, 4 * i : 4 * i + 4], alone[0])


def test_neighbors_of_chosen_slices_come_from_the_volume_not_from_the_choice(dataset):
    data = SegmentationData(dataset.slices(dataset.ids[:2], z=range(60, 100, 10)), neighbors=1, crop=(16, 32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(dataset), "volume", None)  # slices are taken from the file one by one
        images, labels = data.batch(torch.tensor([1, 6]))
    assert data.slices.z[[1, 6]].tolist() == [70, 80]
    for row, label, id, z in zip(images.numpy(), labels.numpy(), dataset.ids, (70, 80), strict=False):
        volume, (y, x) = dataset.volume(id), data.corner(dataset.ids.index(id))
        window = np.concatenate(volume.images[z - 1 : z + 2])[:, y : y + 16, x : x + 32]
        assert np.array_equal(row, window) and np.array_equal(label, volume.labels[z, y : y + 16, x : x + 32])


def test_the_window_follows_the_brain_and_is_put_back(dataset):
    data = SegmentationData(dataset.slices(z=[80]), crop=(16, 32))
    images, labels = data.batch(np.arange(len(data)))
    y, x = data.corner(data.groups[0])
    whole, _ = SegmentationData(dataset.slices(z=[80])).batch([0])
    assert images.shape == (PATIENTS, 4, 16, 32) and labels.shape == (PATIENTS, 16, 32)
    assert torch.equal(images[0], whole[0, :, y : y + 16, x : x + 32])
    assert whole[0].count_nonzero() == images[0].count_nonzero()  # the brain is smaller than the window
    restored = data.restore(labels[:, None].numpy(), np.arange(len(data)))
    assert np.array_equal(restored[:, 0], dataset.slices(z=[80]).batch(np.arange(len(data)))[1].numpy())


def test_another_window_and_another_data_set_have_corners_of_their_own(dataset, tmp_path):
    data = SegmentationData(dataset.slices(z=[80]), crop=(16, 32))
    corner = data.corner(0)
    assert replace(data, crop=(20, 40)).corner(0) == SegmentationData(data.slices, crop=(20, 40)).corner(0) != corner
    images, labels = patient(1)
    shifted = np.roll(images, -6, 0), np.roll(labels, -6, 0)
    write_nifti(tmp_path, "BraTS20_Training_901", shifted)
    other = _load(tmp_path, workers=1, shape=SHAPE).slices(z=[80])
    assert replace(data, slices=other).corner(0) == SegmentationData(other, crop=(16, 32)).corner(0) != corner
    assert data.subset([0])._corners is data._corners  # found once for all parts


def test_an_epoch_draws_the_share_of_tumor_that_was_asked_for(dataset):
    data = SegmentationData(dataset.slices(z=WHOLE), foreground=0.5, draws=4000)
    order = data.order(torch.Generator().manual_seed(0))
    share = data.slices.has_tumor[order.numpy()].mean()
    rest = data.slices.has_tumor.mean()
    assert len(order) == 4000 and abs(share - (0.5 + 0.5 * rest)) < 0.03
    every = replace(data, foreground=None, draws=None).order(torch.Generator().manual_seed(0))
    assert sorted(every.tolist()) == list(range(len(data)))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"regions": ("WT", "edema")}, "edema"),
        ({"normalize": "z"}, "normalize='z'"),
        ({"neighbors": -1}, "neighbors=-1"),
        ({"crop": (64, 16)}, "32 × 48"),
        ({"foreground": 1.5}, "foreground=1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(dataset, wrong, message):
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        SegmentationData(dataset.slices(z=[80]), **wrong)


def test_the_fingerprint_names_what_is_made_of_the_slices(dataset):
    data = SegmentationData(dataset.slices(z=[80]))
    others = [{"regions": ("WT",)}, {"normalize": "standardize"}, {"neighbors": 1}, {"crop": (16, 16)}]
    prints = {data.fingerprint, *(replace(data, **other).fingerprint for other in others)}
    assert len(prints) == 5


# ---- augmentation


def test_image_and_mask_move_together_and_the_background_stays_0():
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(16, 1, 40, 56, dtype=torch.bool)
    masks[:, :, 12:26, 20:34] = True
    images = masks.float().expand(-1, 4, -1, -1).clone()  # an image that is its mask shows where each pixel went
    moved, followed = SegmentationAugment(spatial=1, noisy=0, blur=0, brightness=0, contrast=0, gamma=0)(
        images, masks, generator
    )
    agreement = ((moved[:, :1] > 0.5) == followed).float().mean()
    assert followed.dtype == torch.bool and followed.any() and agreement > 0.99
    assert not torch.equal(followed, masks)
    noisy, _ = SegmentationAugment(spatial=0, flip=0, noisy=1, blur=1)(images, masks, generator)
    assert (noisy[~masks.expand_as(noisy)] == 0).all() and (noisy != images).any()


def test_the_background_next_to_the_brain_stays_0_where_nothing_moves_and_where_all_does():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(8, 2, 48, 40, generator=generator) > 0.5  # every pixel has neighbors of both kinds
    images = (torch.rand(8, 4, 48, 40, generator=generator) + 0.5) * masks[:, :1]
    bright = {"flip": 0, "noisy": 0, "blur": 0}
    same, followed = SegmentationAugment(spatial=0, **bright)(images, masks, generator)
    assert torch.equal(followed, masks) and torch.equal(same != 0, images != 0)
    moved, followed = SegmentationAugment(spatial=1, **bright)(images, masks, generator)
    assert not torch.equal(followed, masks)
    assert torch.equal(moved != 0, followed[:, :1].expand_as(moved))


def test_a_mirror_is_exact_and_a_turn_keeps_its_shape_in_a_window_that_is_not_square():
    images = torch.rand(1, 4, 40, 80) + 1
    masks = torch.rand(1, 2, 40, 80) > 0.5
    still = SegmentationAugment(flip=1, spatial=0, noisy=0, blur=0, brightness=0, contrast=0, gamma=0)
    mirrored, followed = still(images, masks)
    assert torch.allclose(mirrored, images.flip((2, 3)), atol=1e-4) and torch.equal(followed, masks.flip((2, 3)))
    disk = (torch.arange(40)[:, None] - 19.5) ** 2 + (torch.arange(80)[None] - 39.5) ** 2 < 12**2
    turn = SegmentationAugment(flip=0, rotation=90, spatial=1, zoom=0, noisy=0, blur=0)
    _, turned = turn(disk.float().expand(8, 4, -1, -1), disk.expand(8, 1, -1, -1), torch.Generator().manual_seed(1))
    assert (turned == disk).float().mean() > 0.99  # a disk stays a disk, not an ellipse


def test_the_draw_decides_everything_and_processes_may_share_it():
    augment = SegmentationAugment(noisy=1, blur=1, spatial=1)
    images, masks = torch.rand(6, 4, 32, 32), torch.rand(6, 3, 32, 32) > 0.5
    draw = augment.draw(6, torch.Generator().manual_seed(3))
    together = augment(images, masks, draw=draw)
    apart = [augment(images[part], masks[part], draw=draw[:, part]) for part in (slice(0, 2), slice(2, 6))]
    for k in range(2):
        assert torch.allclose(together[k].float(), torch.cat([a[k] for a in apart]).float(), atol=1e-6)


# ---- splits


def test_patients_are_stratified_and_kept_apart(dataset):
    parts = split_patients(dataset, (5, 2, 2))
    assert [len(part) for part in parts] == [5, 2, 2]
    assert sorted(id for part in parts for id in part) == sorted(dataset.ids)
    table = [
        {"id": f"p{i:03}", "grade": "LGG" if i % 5 == 0 else "HGG", "NCR_ml": 0.0, "ED_ml": float(i), "ET_ml": 0.0}
        for i in range(100)
    ]
    for seed in range(5):
        train, validation, test = stratify(table, (60, 20, 20), seed)
        assert len(train) == 60 and len({*train, *validation, *test}) == 100
        for part in (validation, test):
            numbers = np.array([int(id[1:]) for id in part])
            assert 3 <= (numbers % 5 == 0).sum() <= 5 and abs(numbers.mean() - 49.5) < 8
    assert stratify(table, (60, 20, 20), 0) != stratify(table, (60, 20, 20), 1)
    with pytest.raises(DataError, match="2 patient"):
        stratify(table[:2])


def test_the_course_s_own_split_is_the_committed_one():
    from brainlib.segmenters import _known_parts

    parts = list(_known_parts().values())
    assert {part: parts.count(part) for part in set(parts)} == {"train": 24, "validation": 4, "test": 6}


def test_the_study_s_split_has_nearly_every_patient_on_both_sides(dataset):
    train, test = split_slices(dataset)
    assert len(train) + len(test) == PATIENTS * len(MIDDLE) and len(test) == round(0.2 * PATIENTS * len(MIDDLE))
    assert set(train.groups) == set(test.groups)
    assert not set(zip(train.groups, train.z, strict=True)) & set(zip(test.groups, test.z, strict=True))


def test_a_patient_in_two_parts_is_refused(dataset):
    ids = dataset.ids
    with pytest.raises(DataError, match=ids[0]):
        train_segmenter(CLASSIC, dataset, patients=(ids[:3], ids[3:4], ids[:1]), epochs=1, **QUIET)
    with pytest.raises(DataError, match="share 1 group"):
        train_segmenter(CLASSIC, dataset, patients=(ids[:3], ids[2:4], ids[5:6]), epochs=1, **QUIET)
    with pytest.raises(DataError, match="choose one of study, patient"):
        train_segmenter(CLASSIC, dataset, "official", **QUIET)
    with pytest.raises(DataError, match="classic_unet"):
        train_segmenter("unet", dataset, **QUIET)


# ---- from a model to masks


class Oracle(torch.nn.Module):
    """Knows the trick of `patient`: where a standardized channel is far above its mean, it shows a part."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(40.0))

    def forward(self, x):
        ed, et, ncr = (x[:, channel] > 2.5 for channel in (0, 2, 3))
        single = [ncr & ~et, ed & ~ncr & ~et, et]
        return torch.stack([self.scale * (part.float() - 0.5) for part in single], 1)


def test_a_model_that_knows_is_scored_as_perfect_and_an_empty_one_as_worst(dataset):
    test = SegmentationData(dataset.slices(dataset.ids[:3], z=WHOLE), normalize="standardize")
    scores = score_segmenter(Oracle().train(), test)
    for row in scores.patients:
        for region in SCORED:
            low = region.lower()
            assert row[f"dice_{low}"] == 1 and row[f"hd95_{low}"] == 0
            assert row[f"ml_{low}"] == row[f"predicted_ml_{low}"]
    truth = {row["id"]: row for row in dataset.table()}
    for row in scores.patients:
        assert row["ml_et"] == pytest.approx(truth[row["id"]]["ET_ml"]) and row["grade"] == truth[row["id"]]["grade"]
    assert scores.counts.means("batch_pooled")["dice"]["mean"] == pytest.approx(1)
    assert len(scores.counts) == 3 * len(MIDDLE)
    for bins in scores.reliability.values():
        assert sum(n for _, _, n in bins) == 3 * 120 * 14 * 29  # the pixels of the brain
        assert bins[0][1] == 0 and bins[-1][1] == 1
    nothing = score_outlines(lambda data: np.zeros((len(data), 3, 32, 48), np.float16), test)
    assert all(row["dice_wt"] == 0 and row["hd95_wt"] == 373.13 for row in nothing.patients)


def test_outlining_leaves_the_model_as_it_was_and_flips_do_not_move_masks(dataset):
    data = SegmentationData(dataset.slices(dataset.ids[:1], z=range(70, 90)), crop=(16, 32))
    model = Oracle().train()
    plain, flipped = outline(model, data, batch_size=7), outline(model, data, flips=True)
    assert model.training and plain.shape == (20, 3, 32, 48) and plain.dtype == np.float16
    assert np.array_equal(plain, flipped)  # the oracle looks at each pixel alone
    outside = np.ones((32, 48), bool)
    y, x = data.corner(data.groups[0])
    outside[y : y + 16, x : x + 32] = False
    assert (plain[:, :, outside] == 0).all()


def test_masks_of_labels_and_of_regions_become_each_other():
    labels = np.random.default_rng(0).choice(np.array([0, 1, 2, 4], np.uint8), (5, 9, 9))
    single, nested = region_masks(labels, ("NCR", "ED", "ET")), region_masks(labels, ("WT", "TC", "ET"))
    for masks, regions in ((single, ("NCR", "ED", "ET")), (nested, ("WT", "TC", "ET"))):
        assert np.array_equal(convert_masks(masks, regions, SCORED), region_masks(labels, SCORED))
    overlapping = np.ones((1, 3, 2, 2), bool)  # what a model outlines itself is scored as it is
    assert convert_masks(overlapping, ("NCR", "ED", "ET"), ("NCR", "ET")).all()
    with pytest.raises(DataError, match="'WT', 'ED'"):
        convert_masks(nested, ("WT", "ED", "ET"), ("NCR",))


# ---- a run


@pytest.mark.parametrize("recipe", [CLASSIC, COMPACT], ids=["classic", "compact"])
def test_a_run_that_dies_ends_as_one_that_did_not(dataset, tmp_path, recipe):
    ids = dataset.ids
    settings = {"patients": (ids[:2], ids[2:3], ids[3:4]), "epochs": 2, "checkpoints": tmp_path, **QUIET}
    whole = train_segmenter(recipe, dataset, **settings | {"checkpoints": None})

    class Stop(Exception):
        pass

    class Dies(SegmentationData):
        left = 100

        def batch(self, index):
            Dies.left -= 1
            if Dies.left == 0:
                raise Stop
            return super().batch(index)

    steps = -(-(recipe.draws or 2 * len(MIDDLE)) // recipe.batch_size)
    checks = -(-len(MIDDLE) // (2 * recipe.batch_size))
    Dies.left = steps + checks + 2  # in the second epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("brainlib.segmenters.SegmentationData", Dies)
        with pytest.raises(Stop):
            train_segmenter(recipe, dataset, **settings)
    again = train_segmenter(recipe, dataset, **settings)
    assert again.history.train_loss == whole.history.train_loss
    for a, b in zip(again.network.state_dict().values(), whole.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_compact_segmenter_learns_and_its_record_can_be_read(dataset, tmp_path, monkeypatch):
    ids = dataset.ids
    trained = train_segmenter(
        replace(COMPACT, learning_rate=1e-2, draws=320),
        dataset,
        patients=(ids[:5], ids[5:6], ids[6:9]),
        epochs=4,
        **QUIET,
    )
    scores = score_segmenter(trained.network, trained.test)
    record = describe_segmenter(trained, scores)
    assert record.metrics["dice_wt"].value > 0.5 and record.metrics["dice_wt"].low <= record.metrics["dice_wt"].value
    assert set(record.metrics) == {f"{kind}_{region.lower()}" for kind in ("dice", "hd95") for region in SCORED}
    assert record.data | {"fingerprint": ""} == {
        "name": "brats2020",
        "fingerprint": "",
        "split": "patient",
        "unit": "patients",
        "train": 5,
        "validation": 1,
        "test": 3,
    }
    monkeypatch.setattr("brainlib.results.results_root", lambda: tmp_path)
    monkeypatch.setattr("brainlib.results._own_root", lambda: tmp_path)
    path = save_record(record, trained.network, root=tmp_path)
    assert "NaN" not in path.read_text() and json.loads(path.read_text())["settings"]["loss"] == "batch_dice_bce"
    (found,) = load_records(record.chapter, root=tmp_path)
    assert (
        found.run.startswith("compact_unet-")
        and re.fullmatch(r".*-patient-[0-9a-f]{8}-0", found.run)
        and found.tables["patients"] == scores.patients
    )
    model = load_model(f"{record.chapter}/{record.run}")
    images = torch.rand(1, 12, 16, 32)
    assert torch.allclose(model(images), trained.network(images), atol=0.05)  # weights in float16


def test_the_study_s_protocol_reports_its_seven_metrics_pooled(dataset):
    trained = train_segmenter(CLASSIC, dataset, "study", epochs=1, **QUIET)
    scores = score_segmenter(trained.network, trained.test, distances=False)
    record = describe_segmenter(trained, scores)
    assert set(record.metrics) == {f"{m}_{c}" for m in PIXEL_METRICS for c in ("ncr", "ed", "et", "mean")}
    assert (
        record.run.startswith("classic_unet-")
        and record.run.endswith("-study-0-1-epochs")
        and record.settings["shortened"]
    )
    assert record.data["train"] + record.data["test"] == PATIENTS * len(MIDDLE)
    for name in PIXEL_METRICS:
        for channel in ("NCR", "ED", "ET", "mean"):
            found = record.metrics[f"{name}_{channel.lower()}"]
            assert found.value == pytest.approx(record.tables["pooled"][name][channel], nan_ok=True)


def random_counts(patients, slices, empty=None):
    """Counts of random masks of 4 × 4 pixels, as `score_outlines` collects them; channel 1 of ``empty`` is empty."""
    rng = np.random.default_rng(0)
    counts = Counts(("NCR", "ED", "ET"))
    for number in range(patients):
        masks = torch.from_numpy(rng.random((2, slices, 3, 4, 4)) < rng.uniform(0.1, 0.6))
        if empty is None or number in empty:
            masks[:, :, 1] &= empty is None
        counts.update(*masks, number)
    return counts


def test_a_pooled_score_is_one_number_and_its_interval_is_over_patients(recwarn):
    counts = random_counts(5, 32, empty={0, 1})
    means = counts.means("batch_pooled")  # a batch for each patient, two of them without channel 1
    found = bootstrap_pooled(counts, samples=200)
    table = counts.scores("batch_pooled")["dice"]
    assert np.isnan(table).sum() == 2
    assert found["dice"]["mean"].value == means["dice"]["mean"] == pytest.approx(np.nanmean(table, 0).mean())
    for name in PIXEL_METRICS:
        for channel, interval in found[name].items():
            assert interval.value == means[name][channel] and interval.low < interval.high
    # All slices of one patient agree, so that only a draw of patients moves the score.
    ends = []
    for slices in (32, 320):
        counts = Counts(("NCR", "ED", "ET"))
        for number in range(6):
            truth = torch.ones(slices, 3, 1, 12, dtype=torch.bool)
            counts.update(truth & (torch.arange(12) < 2 * number + 1), truth, number)
        interval = bootstrap_pooled(counts, samples=300)["recall"]["mean"]
        ends.append((interval.low, interval.high))
    assert ends[0] == pytest.approx(ends[1], abs=0.1) and ends[1][1] - ends[1][0] > 0.3
    nothing = Counts(("NCR", "ED", "ET"))
    nothing.update(*torch.zeros(2, 40, 3, 4, 4, dtype=torch.bool), 0)
    undefined = bootstrap_pooled(nothing, samples=5)["dice"]["mean"]
    assert str(undefined) == "nan [nan, nan]" and not recwarn.list


def test_counts_are_pooled_as_their_pixels_would_be():
    rng = np.random.default_rng(1)
    lengths = (40, 7, 30)
    parts = [(*(rng.random((2, n, 3, 5, 4)) < 0.3), np.full(n, i)) for i, n in enumerate(lengths)]
    counts = Counts(("NCR", "ED", "ET"))
    for predicted, true, owner in parts:
        counts.update(torch.from_numpy(predicted), torch.from_numpy(true), owner)
    order = np.random.default_rng(0).permutation(sum(lengths))
    predicted, true, owner = (np.concatenate([part[k] for part in parts])[order] for k in range(3))
    whole = Counts(("NCR", "ED", "ET"))  # all pixels in shuffled batches of 32
    for start in range(0, len(order), 32):
        batch = slice(start, start + 32)
        whole.update(torch.from_numpy(predicted[batch]), torch.from_numpy(true[batch]), owner[batch])
    again = counts.rebatch(order)
    for aggregation in ("per_patient", "per_slice", "batch_pooled"):
        assert np.array_equal(again.table(aggregation), whole.table(aggregation))
    assert np.array_equal(again.owners, whole.owners) and np.array_equal(again.owners, owner)


def test_distances_need_slices_that_touch(dataset):
    def nothing(data):
        return np.zeros((len(data), 3, 32, 48), np.float16)

    ids = dataset.ids[:2]
    strided = SegmentationData(dataset.slices(ids, z=range(60, 100, 2)))
    with pytest.raises(DataError, match=f"{ids[0]} slice 62 follows 60: test whole volumes"):
        score_outlines(nothing, strided)
    upside_down = strided.subset(np.arange(len(strided))[::-1])
    with pytest.raises(DataError, match="slice 96 follows 98"):
        score_outlines(nothing, upside_down)
    rows = score_outlines(nothing, strided, distances=False).patients
    assert len(rows) == 2 and not any(name.startswith("hd95") for name in rows[0])


def test_a_record_without_distances_has_no_distances_and_names_its_patients(dataset, tmp_path):
    ids = dataset.ids
    options = {"epochs": 1, "checkpoints": tmp_path, "patients": (ids[:2], ids[2:3], ids[3:5]), **QUIET}
    trained = train_segmenter(CLASSIC, dataset, **options)
    record = describe_segmenter(trained, score_segmenter(trained.network, trained.test, distances=False))
    assert set(record.metrics) == {f"dice_{region.lower()}" for region in SCORED}
    mine = record.run
    assert [path.name for path in tmp_path.iterdir()] == [f"{mine}.safetensors"]
    names = [
        _run_name(CLASSIC, "patient", 0, 1, parts)
        for parts in (None, options["patients"], (ids[:2], ids[2:3], ids[4:5]))
    ]
    assert names[1] == mine and len(set(names)) == 3
    assert record.settings["precision"] == trained.precision


@pytest.mark.parametrize("bias, warned", [(-9.0, True), (9.0, False)])
def test_a_network_that_outlines_nothing_is_told_of(dataset, monkeypatch, recwarn, bias, warned):
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.full((3, 1, 1), bias))

        def forward(self, x):
            return self.bias + 0 * x[:, :3]

    monkeypatch.setattr(type(CLASSIC), "make_model", lambda self: Constant())
    ids = dataset.ids
    trained = train_segmenter(CLASSIC, dataset, patients=(ids[:1], ids[1:2], ids[2:3]), epochs=1, **QUIET)
    told = [str(w.message) for w in recwarn if "outlines nothing" in str(w.message)]
    assert len(told) == warned and all(trained.run in text for text in told)
    if warned:  # what flatters it: the share of empty masks
        assert trained.history.validation_score[0] > 0.5


def test_every_recipe_makes_what_it_says(dataset):
    for recipe in SEGMENTER_RECIPES.values():
        torch.manual_seed(0)
        model, loss = recipe.make_model(), recipe.make_loss()
        scheduler = recipe.make_scheduler(recipe.make_optimizer(model), 5)
        data = replace(recipe, crop=None).make_data(dataset.slices(z=[80]))
        images = torch.rand(2, data.channels, 32, 48)
        value = loss(model(images), torch.rand(2, len(recipe.regions), 32, 48) > 0.8)
        value.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert scheduler.get_last_lr()[0] > 0 and json.dumps(recipe.to_dict())
    rate = [get_segmenter_recipe("classic_unet").make_scheduler(torch.optim.Adam([torch.zeros(1)], lr=2e-3))]
    rate[0].optimizer.step()
    rate[0].step()
    assert math.isclose(rate[0].get_last_lr()[0], 2e-3 * 0.9)


def test_a_mean_over_patients_counts_each_once_and_draws_seeds_too():
    values = np.array([0.2, 0.8, np.nan, 0.5])
    found = bootstrap_mean(values)
    assert found.value == pytest.approx(0.5) and 0.2 <= found.low < 0.5 < found.high <= 0.8
    seeds = bootstrap_mean([[0.5, 0.5], [0.7, 0.7]])
    assert seeds.value == pytest.approx(0.6) and (seeds.low, seeds.high) == pytest.approx((0.5, 0.7))
    assert np.isnan(bootstrap_mean([np.nan]).value)
    with pytest.raises(DataError):
        bootstrap_mean([])


def test_fit_refuses_a_checkpoint_of_another_loss(dataset, tmp_path):
    from brainlib.losses import Tversky
    from brainlib.models import create_model

    data = SegmentationData(dataset.slices(dataset.ids[:1], z=range(78, 82)))

    def run(loss):
        model = create_model("classic_unet", n_filters=2)
        return fit(
            model,
            data,
            loss=loss,
            optimizer=torch.optim.Adam(model.parameters()),
            epochs=1,
            checkpoint=tmp_path / "a.safetensors",
            score=lambda outputs, masks: outputs.mean((1, 2, 3)),
            **QUIET,
        )

    run(Tversky(0.3, 0.7))
    run(Tversky(0.3, 0.7))
    with pytest.raises(DataError, match="alpha=0.5"):
        run(Tversky(0.5, 0.5))


def test_counts_of_a_pooled_score_do_not_depend_on_the_order_of_patients(dataset):
    test = SegmentationData(dataset.slices(dataset.ids[:2], z=MIDDLE))
    scores = score_segmenter(Oracle(), test, distances=False)
    assert isinstance(scores.counts, Counts) and set(scores.counts.patients) == {0, 1}


def test_habits_of_the_course_change_all_but_the_network():
    own, alike = (get_segmenter_recipe("attention_unet", habits) for habits in ("own", "course"))
    compact = get_segmenter_recipe("compact_unet")
    differ = {f.name for f in fields(alike) if getattr(alike, f.name) != getattr(compact, f.name)}
    assert differ == {"model", "arguments"}
    assert alike.arguments == {"n_filters": 16, "in_channels": 12} and own.arguments == {"n_filters": 16}
    assert [r.mark() for r in (own, alike, compact)] == ["", "-course", ""]
    assert get_segmenter_recipe("compact_unet", "course") == compact
    changed = replace(alike, epochs=7).mark()
    assert changed not in ("", "-course") and len(changed) == 9
    with pytest.raises(DataError, match="habits='mine': choose from own, course"):
        get_segmenter_recipe("classic_unet", "mine")


def recorded(run, seed, epochs=20, split="patient", dice=(0.5, 0.7)):
    facts = {"name": "phantom", "fingerprint": "0", "split": split, "train": 1, "validation": 1, "test": 2}
    metrics = {"dice_wt": (np.mean(dice), 0, 1)}
    tables = {"patients": [{"dice_wt": d} for d in dice]}
    model = "classic_unet"
    return Record("14", run, model, "full", facts, {"epochs": epochs}, [seed], metrics, 1.0, tables=tables)


def test_recorded_segmenters_are_grouped_by_protocol_habits_and_length(monkeypatch):
    names = ("classic_unet-patient-10", "classic_unet-patient-2", "classic_unet-patient-0-3-epochs")
    others = (
        "classic_unet-course-patient-0",
        "classic_unet-0a1b2c3d-patient-0",
        "classic_unet-patient-0a1b2c3d-0",
        "classic_unet-patient-12345678-0-3-epochs",
    )
    runs = [recorded(names[0], 10), recorded(names[1], 2), recorded(names[2], 0, 3)]
    runs += [recorded(name, 0) for name in others] + [recorded("classic_unet-study-0", 0, split="study")]
    monkeypatch.setattr("brainlib.segmenters.load_records", lambda chapter: runs)
    own = {key: [r.run for r in some] for key, some in recorded_segmenters("patient").items()}
    assert own == {("classic_unet", 3): [names[2]], ("classic_unet", 20): [names[1], names[0]]}
    assert [r.run for r in recorded_segmenters("patient", "course")["classic_unet", 20]] == [others[0]]
    assert [*recorded_segmenters("study")] == [("classic_unet", 20)] and not recorded_segmenters("study", "course")
    for wrong in ({"split": "grouped"}, {"split": "patient", "habits": "mine"}):
        with pytest.raises(DataError, match="choose a split"):
            recorded_segmenters(**wrong)


def test_a_summary_names_its_seeds_and_has_the_interval_of_its_unit():
    first, second = recorded("a", 0), recorded("b", 1, dice=(0.7, 0.9))
    assert summarize_runs([], "dice_wt") == "not run yet"
    assert summarize_runs([first], "dice_wt") == f"{bootstrap_mean([0.5, 0.7])}, 1 seed"
    both = summarize_runs([first, second], "dice_wt")
    assert both == f"{bootstrap_mean([[0.5, 0.7], [0.7, 0.9]])}, 2 seeds" and both.startswith("0.700 [")
    pooled = [recorded(name, 0, split="study", dice=d) for name, d in (("a", (0.5, 0.7)), ("b", (0.7, 0.9)))]
    assert summarize_runs(pooled[:1], "dice_wt") == "0.600, 1 seed"
    assert summarize_runs(pooled, "dice_wt") == "0.700 (0.600 to 0.800), 2 seeds"
