"""Protocols cover what they say and no network is tested on what it has learned; a run that dies goes on."""

import json
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import random_slices, striped_slices

import brainlib.evaluate
import brainlib.train
from brainlib import experiments
from brainlib.data import Augment, DataError
from brainlib.evaluate import predict
from brainlib.experiments import (
    PROTOCOLS,
    Part,
    default_epochs,
    describe,
    is_usual,
    recorded_classifiers,
    split_parts,
    train_classifier,
)
from brainlib.metrics import accuracy, macro_f1
from brainlib.recipes import RECIPES, get_recipe
from brainlib.results import Record, load_predictions, load_records, save_record

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"progress": False}
SMALL = replace(get_recipe("mlp"), arguments={"widths": [8]})  # with augmentation, dropout and a schedule


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The 2,000 samples of an interval take most of the time of `describe`."""
    monkeypatch.setattr(brainlib.evaluate, "bootstrap", partial(brainlib.evaluate.bootstrap, samples=50))


@pytest.fixture(scope="module")
def data():
    """84 slices of 28 patients, in no order; Testing has four patients, and one slice each of four from Training."""
    plain = striped_slices(84, 128)
    number = np.arange(84) // 4
    patient = number // 3
    splits = np.where((patient == 0) | ((patient == 1) & (number % 3 == 0)), "Testing", "Training")
    ordered = replace(plain, groups=patient * 4 + plain.labels, splits=splits)
    return ordered.subset(np.random.default_rng(0).permutation(84))


@pytest.fixture(scope="module")
def many():
    """600 slices of 150 patients; a third of Testing shows patients of Training; some with a published fold."""
    plain = random_slices(600, 8)
    groups = np.arange(600) // 4
    labels = groups % 4
    splits = np.where((np.arange(600) % 16 >= 12) | (np.arange(600) % 32 == 0), "Testing", "Training")
    folds = np.where(groups % 3 == 0, groups % 5 + 1, 0)
    return replace(plain, groups=groups, labels=labels, splits=splits, folds=folds)


def shared(data, a: np.ndarray, b: np.ndarray) -> int:
    """How many groups two lists of positions have in common."""
    return len(np.intersect1d(data.groups[a], data.groups[b]))


def same_weights(first, second) -> bool:
    return all(
        torch.equal(tensor, b.state_dict()[name])
        for a, b in zip(first.networks, second.networks, strict=True)
        for name, tensor in a.state_dict().items()
    )


# Protocols ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["few", "many"])
def either(request, data, many):
    return data if request.param == "few" else many


def test_the_studys_protocol_validates_on_what_it_tests(either):
    (part,) = split_parts(either, "study")
    assert (either.splits[part.train] == "Training").all() and (either.splits[part.test] == "Testing").all()
    np.testing.assert_array_equal(part.validation, part.test)
    assert len(part.train) + len(part.test) == len(either)
    assert shared(either, part.train, part.test) > 0  # what is wrong with it


def test_the_official_protocol_uses_each_slice_once(either):
    (part,) = split_parts(either, "official")
    everything = np.concatenate([part.train, part.validation, part.test])
    assert sorted(everything) == list(range(len(either)))
    np.testing.assert_array_equal(part.test, np.flatnonzero(either.splits == "Testing"))
    assert shared(either, part.train, part.validation) == 0
    # The folders as published share patients; nothing else does.
    training = np.concatenate([part.train, part.validation])
    assert shared(either, training, part.test) == shared(either, training, np.flatnonzero(either.splits == "Testing"))
    assert shared(either, training, part.test) > 0


def test_the_grouped_protocol_keeps_patients_apart(either):
    parts = split_parts(either, "grouped")
    assert len(parts) == 5
    assert sorted(np.concatenate([part.test for part in parts])) == list(range(len(either)))  # each tested once
    for part in parts:
        everything = np.concatenate([part.train, part.validation, part.test])
        assert sorted(everything) == list(range(len(either)))
        for a, b in ((part.train, part.validation), (part.train, part.test), (part.validation, part.test)):
            assert shared(either, a, b) == 0


def test_sizes_and_classes_of_the_parts(many):
    for split in ("official", "grouped"):
        for part in split_parts(many, split):
            learned = len(part.train) + len(part.validation)
            assert len(part.validation) == pytest.approx(0.15 * learned, abs=12)
            shares = [
                np.bincount(many.labels[index], minlength=4) / len(index) for index in (part.train, part.validation)
            ]
            np.testing.assert_allclose(*shares, atol=0.05)
            assert len(part.test) == pytest.approx(120, abs=20) or split == "official"


def test_published_folds_are_kept(many):
    for number, part in enumerate(split_parts(many, "grouped"), 1):
        published = many.folds[part.test]
        assert set(published) == {0, number}


@pytest.mark.parametrize("split", PROTOCOLS)
def test_parts_do_not_depend_on_chance(many, split):
    np.random.seed(3)  # noqa: NPY002
    for first, second in zip(split_parts(many, split), split_parts(many, split), strict=True):
        for name in ("train", "validation", "test"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_unknown_protocol(many):
    with pytest.raises(DataError, match="split='random': choose one of study, official, grouped"):
        split_parts(many, "random")
    with pytest.raises(DataError, match="no recipe for 'lenet'"):
        train_classifier("lenet", many)


def test_epochs_of_a_protocol():
    found = {(name, split): default_epochs(recipe, split) for name, recipe in RECIPES.items() for split in PROTOCOLS}
    shorter = {place for place, epochs in found.items() if epochs != RECIPES[place[0]].epochs}
    assert shorter == {
        (name, split) for name in ("custom_cnn", "compact_transformer", "alexnet") for split in ("official", "grouped")
    }
    assert found["custom_cnn", "study"] == 40 and found["custom_cnn", "grouped"] == 20 and found["vgg16", "study"] == 50
    short = replace(get_recipe("custom_cnn"), epochs=7)
    assert default_epochs(short, "grouped") == 7  # never longer than the recipe


def test_a_training_that_stops_early_keeps_the_schedule_of_the_whole(data, monkeypatch):
    monkeypatch.setattr(experiments, "STOPPED_EARLY", {"mlp": 2})
    stopped = train_classifier(SMALL, data, "official", **QUIET)
    assert stopped.epochs == 2 and stopped.histories[0].learning_rate == [SMALL.learning_rate] * 2
    settings = describe(stopped, data).settings
    assert settings["stopped_early"] is True and settings["shortened"] is False
    monkeypatch.setattr(experiments, "STOPPED_EARLY", {})
    squeezed = train_classifier(SMALL, data, "official", epochs=2, **QUIET)
    assert squeezed.histories[0].learning_rate == [SMALL.learning_rate, SMALL.learning_rate / 2]
    assert describe(squeezed, data).settings["stopped_early"] is False


# Training -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grouped(data):
    return train_classifier(SMALL, data, "grouped", 1, epochs=3, **QUIET)


@pytest.fixture(scope="module")
def linear(data):
    """One short run of each protocol."""
    return {split: train_classifier("linear", data, split, epochs=2, **QUIET) for split in PROTOCOLS}


def test_predictions_are_in_the_order_of_the_data(data, grouped):
    np.testing.assert_array_equal(grouped.test.labels, data.labels)
    np.testing.assert_array_equal(grouped.test.groups, data.groups)
    assert len(grouped.networks) == len(grouped.histories) == len(grouped.parts) == 5
    assert all(len(history) == 3 for history in grouped.histories)


def test_each_is_tested_by_the_network_that_has_not_learned_from_it(data, grouped):
    answered = grouped.test.networks
    for number, part in enumerate(grouped.parts):
        np.testing.assert_array_equal(np.flatnonzero(answered == number), part.test)
        known = np.concatenate([data.groups[part.train], data.groups[part.validation]])
        assert not np.isin(data.groups[part.test], known).any()
        own = predict(grouped.networks[number], data.subset(part.test))
        np.testing.assert_allclose(grouped.test.probabilities[part.test], own.probabilities, atol=1e-6)
    others = predict(grouped.networks[0], data)
    assert not np.allclose(grouped.test.probabilities, others.probabilities, atol=1e-3)


def test_validation_predictions_come_fold_by_fold(data, grouped):
    start = 0
    for number, part in enumerate(grouped.parts):
        rows = np.arange(start, start := start + len(part.validation))
        found = grouped.validation.subset(rows)
        assert (found.networks == number).all()
        np.testing.assert_array_equal(found.groups, data.groups[part.validation])
        own = predict(grouped.networks[number], data.subset(part.validation))
        np.testing.assert_allclose(found.probabilities, own.probabilities, atol=1e-6)
    assert start == len(grouped.validation)


@pytest.mark.parametrize("split", ["study", "official"])
def test_one_network_tests_the_folder_testing(data, linear, split):
    trained = linear[split]
    testing = np.flatnonzero(data.splits == "Testing")
    np.testing.assert_array_equal(trained.test.groups, data.groups[testing])
    np.testing.assert_array_equal(trained.test.labels, data.labels[testing])
    assert (trained.test.networks == 0).all() and len(trained.networks) == 1
    own = predict(trained.networks[0], data.subset(testing))
    np.testing.assert_allclose(trained.test.probabilities, own.probabilities, atol=1e-6)


def test_which_epoch_is_kept(data):
    """The study kept the last; the others keep the best on validation."""
    recipe = replace(get_recipe("linear"), learning_rate=0.05)  # so high that scores go up and down
    for split in ("study", "official"):
        trained = train_classifier(recipe, data, split, epochs=6, **QUIET)
        (history,) = trained.histories
        scores = history.validation_score
        assert history.best_epoch == (5 if split == "study" else scores.index(max(scores)))
        found = accuracy(trained.validation.probabilities, trained.validation.labels)
        assert found == pytest.approx(scores[history.best_epoch], abs=0.01)


def test_the_seed_decides_all(data):
    runs = [train_classifier(SMALL, data, "official", seed, epochs=1, **QUIET) for seed in (0, 0, 1)]
    assert same_weights(runs[0], runs[1]) and not same_weights(runs[0], runs[2])
    np.testing.assert_array_equal(runs[0].test.probabilities, runs[1].test.probabilities)


def test_every_fold_begins_with_the_same_weights(data):
    recipe = replace(SMALL, learning_rate=0.0, weight_decay=0.0)
    trained = train_classifier(recipe, data, "grouped", epochs=1, **QUIET)
    first, *others = (list(network.parameters()) for network in trained.networks)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_own_parts(data):
    halves = [np.arange(0, 84, 2), np.arange(1, 84, 4), np.arange(3, 84, 4)]
    apart = replace(data, groups=np.arange(84))
    trained = train_classifier("linear", apart, parts=[Part(*halves)], epochs=1, **QUIET)
    np.testing.assert_array_equal(trained.test.groups, halves[2])
    with pytest.raises(DataError, match="training and validation share"):
        train_classifier("linear", data, parts=[Part(*halves)], epochs=1, **QUIET)


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saves(monkeypatch):
    """Counts checkpoints as they are written; set ``saves.stop`` to have the process die after one of them."""
    write = brainlib.train._save_checkpoint

    class Saves:
        count, stop = 0, None

        def __call__(self, *arguments):
            write(*arguments)
            self.count += 1
            if self.count == self.stop:
                raise KeyboardInterrupt

    saves = Saves()
    monkeypatch.setattr(brainlib.train, "_save_checkpoint", saves)
    return saves


def test_a_run_that_dies_goes_on_bit_for_bit(data, grouped, saves, tmp_path):
    options = {"epochs": 3, "checkpoints": tmp_path} | QUIET
    saves.stop = 8  # the third fold, after its second epoch
    with pytest.raises(KeyboardInterrupt):
        train_classifier(SMALL, data, "grouped", 1, **options)
    resumed = train_classifier(SMALL, data, "grouped", 1, **options)
    assert saves.count == 15 and same_weights(resumed, grouped)
    np.testing.assert_array_equal(resumed.test.probabilities, grouped.test.probabilities)
    np.testing.assert_array_equal(resumed.validation.probabilities, grouped.validation.probabilities)
    for mine, other in zip(resumed.histories, grouped.histories, strict=True):
        assert asdict(mine) | {"seconds": 0} == asdict(other) | {"seconds": 0}
    finished = train_classifier(SMALL, data, "grouped", 1, **options)
    assert saves.count == 15 and same_weights(finished, grouped)  # only tested again
    assert finished.seconds == resumed.seconds > 0  # and the time that it took is still known
    assert len(list(tmp_path.iterdir())) == 5


def test_runs_have_checkpoints_of_their_own(data, saves, tmp_path):
    """Another seed, length, protocol or recipe never goes on from what a run has left."""
    usual = replace(get_recipe("linear"), epochs=2)
    options = {"checkpoints": tmp_path} | QUIET
    train_classifier("linear", data, "official", 0, epochs=2, **options)
    assert saves.count == 2
    train_classifier("linear", data, "official", 1, epochs=2, **options)
    train_classifier("linear", data, "official", 0, epochs=1, **options)
    train_classifier("linear", data, "study", 0, epochs=2, **options)
    assert saves.count == 2 + 2 + 1 + 2
    names = ["official-0-1-epochs", "official-0-2-epochs", "official-1-2-epochs", "study-0-2-epochs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"linear-{name}.safetensors" for name in names]
    for change in ({"label_smoothing": 0.1}, {"learning_rate": 1e-2}, {"augment": Augment()}, {"schedule": "cosine"}):
        before = saves.count
        train_classifier(replace(usual, **change), data, "official", 0, **options)
        assert saves.count == before + 2, change


def test_arguments_of_the_model_have_checkpoints_of_their_own(data, saves, tmp_path):
    """Dropout changes no shape: nothing in the file would tell the one network from the other."""
    found = []
    for dropout in (0.0, 0.5):
        recipe = replace(SMALL, arguments={"widths": [8], "dropout": dropout})
        found.append(train_classifier(recipe, data, epochs=2, checkpoints=tmp_path, **QUIET))
    assert saves.count == 4 and not same_weights(*found)


def test_a_part_of_a_protocol_has_one_checkpoint(data, saves, tmp_path):
    """Alone, beside others or in the whole protocol; parts of one's own have others."""
    parts = split_parts(data, "grouped")
    options = {"epochs": 1, "checkpoints": tmp_path} | QUIET
    some = train_classifier("linear", data, "grouped", parts=parts[1:3], **options)
    assert saves.count == 2
    one = train_classifier("linear", data, "grouped", parts=parts[2:3], **options)
    assert saves.count == 2 and torch.equal(one.networks[0].linear.weight, some.networks[1].linear.weight)
    whole = train_classifier("linear", data, "grouped", **options)
    assert saves.count == 5 and same_weights(some, replace(whole, networks=whole.networks[1:3]))
    own = [replace(part, train=part.train[:40]) for part in parts[:2]]
    train_classifier("linear", data, "grouped", parts=own, **options)
    assert saves.count == 7
    train_classifier("linear", data, "grouped", parts=own[1:], **options)
    assert saves.count == 7


def test_checkpoints_lie_beside_the_data(data_folder):
    assert experiments.checkpoint_folder() == data_folder / "runs" / "08_comparing_classifiers"


# Records --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", PROTOCOLS)
def test_record_of_a_run(data, linear, split, tmp_path):
    trained = linear[split]
    assert trained.peak_memory_bytes > 0
    record = describe(replace(trained, peak_memory_bytes=123, precision="16-mixed"), data, "demo")
    assert record.settings["precision"] == "16-mixed"  # of the training, not of the machine that describes it
    assert record.peak_memory_bytes == 123
    predictions = {"test": trained.test, "validation": trained.validation}
    path = save_record(record, root=tmp_path, predictions=predictions)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    (found,) = load_records(experiments.CHAPTER, "demo", tmp_path)
    assert found == record and found.name == f"08_comparing_classifiers/linear-{split}-0-2-epochs"
    assert found.settings["shortened"] is True
    assert (found.settings["epochs"], found.settings["recipe_epochs"]) == (2, 20)
    assert found.settings["learning_rate"] == 1e-3 and found.seeds == [0] and found.seconds > 0
    parts = split_parts(data, split)
    assert found.data["split"] == split and found.data["fingerprint"] == data.fingerprint
    assert found.data["networks"] == len(parts) == len(found.tables["histories"])
    assert found.data["test"] == sum(len(part.test) for part in parts)
    assert found.data["train"] == round(np.mean([len(part.train) for part in parts]))
    assert (found.data["validation"] == 0) == (split == "study")
    test = load_predictions(found)["test"]
    for name, metric in {"accuracy": accuracy, "macro_f1": macro_f1}.items():
        value, low, high = found.metrics[name]
        assert value == metric(trained.test.probabilities, trained.test.labels) and low <= value <= high
        assert metric(test.probabilities, test.labels) == pytest.approx(value)
    assert {"confidence", "auroc", *(f"recall_{name}" for name in data.classes)} < set(found.metrics)
    np.testing.assert_array_equal(test.networks, trained.test.networks)


def test_a_whole_run_is_not_called_short(data):
    recipe = replace(get_recipe("linear"), epochs=1)
    record = describe(train_classifier(recipe, data, **QUIET), data)
    assert record.settings["shortened"] is False
    # Nor does it take the name of the recipe's own run, whose record it would replace.
    assert record.run.startswith("linear-") and record.run.endswith("-official-0") and record.run != "linear-official-0"


def test_histories_keep_their_digits(data, linear):
    """A learning rate of 1.25e-5, or a loss of 7.1e-7, is a number like any other."""
    trained = linear["official"]
    small = [1e-4, 5e-5, 2.5e-5, 1.25e-5, 7.1e-7]
    history = replace(trained.histories[0], learning_rate=small, train_loss=[x / 3 for x in small])
    (stored,) = describe(replace(trained, histories=[history]), data).tables["histories"]
    assert stored["learning_rate"] == small
    assert stored["train_loss"] == pytest.approx(history.train_loss, rel=1e-4)
    assert stored["best_epoch"] == history.best_epoch


def test_confidence_of_the_last_batch_is_the_studys(data, linear):
    """It reported the mean largest probability of the last batch alone; here 64 in a batch."""
    trained = linear["grouped"]
    for count, size in ((36, 36), (130, 2), (128, 64), (64, 64), (65, 1)):
        rows = np.arange(count) % 84
        p = trained.test.subset(rows)
        p = replace(p, probabilities=np.random.default_rng(count).dirichlet(np.ones(4), count))
        tables = describe(replace(trained, test=p), data).tables
        assert tables["confidence_last_batch"] == pytest.approx(p.probabilities[-size:].max(1).mean())
    histories = trained.histories
    tables = describe(trained, data).tables
    assert tables["train_score"] == pytest.approx(np.mean([history.train_score[-1] for history in histories]))
    assert tables["train_loss"] == pytest.approx(np.mean([history.train_loss[-1] for history in histories]))


def recorded(run, seed, epochs, split="official"):
    facts = {"name": "phantom", "fingerprint": "0", "split": split, "train": 1, "validation": 1, "test": 2}
    return Record("08", run, "custom_cnn", "full", facts, {"epochs": epochs}, [seed], {}, 1.0)


def test_recorded_classifiers_are_grouped_by_protocol_and_length(monkeypatch):
    names = ("custom_cnn-official-10", "custom_cnn-official-2", "custom_cnn-official-0-40-epochs")
    runs = [recorded(name, seed, n) for name, seed, n in zip(names, (10, 2, 0), (20, 20, 40), strict=True)]
    runs += [recorded("custom_cnn-0a1b2c3d-official-0", 0, 20), recorded("custom_cnn-study-0", 0, 40, "study")]
    monkeypatch.setattr("brainlib.experiments.load_records", lambda chapter: runs)
    found = {key: [r.run for r in some] for key, some in recorded_classifiers().items()}
    usual, longer, study = (("custom_cnn", *rest) for rest in (("official", 20), ("official", 40), ("study", 40)))
    assert found == {usual: [names[1], names[0]], longer: [names[2]], study: ["custom_cnn-study-0"]}
    assert [*recorded_classifiers("study")] == [study] and not recorded_classifiers("grouped")
    assert [is_usual(*key) for key in (usual, longer, study)] == [True, False, True]
    with pytest.raises(DataError, match="split='patient': choose one of study"):
        recorded_classifiers("patient")
