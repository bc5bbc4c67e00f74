"""Records of runs: written whole, read back as they were, and those in the book complete and in order."""

import base64
import hashlib
import io
import json
import math
import re
from dataclasses import fields
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import mounted, tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import brainlib
from brainlib import results
from brainlib.checks import ABSOLUTE_PATH
from brainlib.course import main
from brainlib.data import DataError
from brainlib.evaluate import Interval, Predictions
from brainlib.metrics import accuracy, macro_f1, mean_confidence
from brainlib.models import CustomCNN, count_parameters, list_models
from brainlib.results import (
    Record,
    find_record,
    list_weights,
    load_model,
    load_predictions,
    load_records,
    peak_memory_bytes,
    reset_peak_memory,
    results_root,
    save_record,
    show_figure,
    study_results,
)
from brainlib.segmenters import SEGMENTER_RECIPES

BOOK = Path(__file__).parents[1] / "book" / "results"
KEYS = "chapter run model profile data settings seeds metrics hardware seconds peak_memory_bytes brainlib commit"
LATER_KEYS = ["figures", "tables", "predictions", "weights_sha256"]  # which the first records lack
ALT = "A line that rises from the lower left to the upper right."
DATA = {"name": "noise", "fingerprint": "0123456789abcdef", "split": "official", "train": 8, "validation": 2, "test": 4}


def make_record(run: str = "official", **changes) -> Record:
    content = {
        "chapter": "05_custom_cnn",
        "run": run,
        "model": "custom_cnn",
        "profile": "full",
        "data": dict(DATA),
        "settings": {"epochs": 40, "learning_rate": 1e-4},
        "seeds": [0, 1, 2],
        "metrics": {"accuracy": Interval(0.9, 0.85, 0.95)},
        "seconds": 12.5,
    }
    return Record(**content | changes)


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """An empty place for records, as in a source tree that has none."""
    monkeypatch.setattr(results, "_SOURCE_TREE", tmp_path / "results")
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def test_record_comes_back_as_it_was(own):
    record = make_record()
    path = save_record(record)
    assert path == own / "05_custom_cnn" / "official.json" and list(tree(own)) == ["05_custom_cnn/official.json"]
    assert load_records("05_custom_cnn") == [record] and record.name == "05_custom_cnn/official"
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert sorted(stored) == sorted(KEYS.split() + LATER_KEYS)
    assert stored["figures"] == stored["tables"] == {} and stored["predictions"] == []
    assert stored["metrics"] == {"accuracy": {"value": 0.9, "low": 0.85, "high": 0.95}}


def test_what_a_record_says_of_this_machine():
    record = make_record()
    assert record.brainlib == brainlib.__version__ and record.hardware and record.peak_memory_bytes > 50e6
    assert record.commit is None or re.fullmatch(r"[0-9a-f]{40}", record.commit)


def test_record_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no git to ask
    assert make_record().commit is None


def test_records_by_profile_and_name(own):
    for run, profile in (("b", "full"), ("a", "full"), ("c", "demo")):
        save_record(make_record(run, profile=profile))
    assert [r.run for r in load_records("05_custom_cnn")] == ["a", "b"]
    assert [r.run for r in load_records("05_custom_cnn", profile=None)] == ["a", "b", "c"]
    assert load_records("06_alexnet") == []


def test_a_second_record_replaces_the_first(own):
    save_record(make_record(seconds=1.0))
    save_record(make_record(seconds=2.0))
    assert [r.seconds for r in load_records("05_custom_cnn")] == [2.0]


def test_your_own_run_replaces_the_one_of_the_course(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_SOURCE_TREE", tmp_path / "there is none")
    monkeypatch.setattr(results, "_INSTALLED", tmp_path / "records")
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "data"))
    save_record(make_record(seconds=1.0), root=tmp_path / "records")
    save_record(make_record("other"), root=tmp_path / "records")
    assert save_record(make_record(seconds=2.0)).is_relative_to(tmp_path / "data" / "results")
    assert [(r.run, r.seconds) for r in load_records("05_custom_cnn")] == [("official", 2.0), ("other", 12.5)]
    assert make_record().commit is None  # an installed package has no commit


def test_what_is_undefined_is_null_in_the_file_and_nan_again(own):
    undefined = {"accuracy": Interval(math.nan, math.nan, math.nan), "auroc": Interval(0.5, math.nan, 0.6)}
    path = save_record(
        make_record(metrics=undefined, tables={"dice": [0.5, math.nan, {"ET": math.nan}], "pairs": (1, 2)})
    )
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    (found,) = load_records("05_custom_cnn")
    assert all(math.isnan(end) for end in found.metrics["accuracy"])
    assert math.isnan(found.metrics["auroc"].low) and found.metrics["auroc"].high == 0.6
    assert found.tables == {"dice": [0.5, None, {"ET": None}], "pairs": [1, 2]}


@pytest.mark.parametrize("key", LATER_KEYS)
def test_old_records_without_later_keys_are_read(own, key):
    path = save_record(make_record())
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    (record,) = load_records("05_custom_cnn")
    assert record.figures == record.tables == {} and record.predictions == []
    with pytest.raises(DataError, match="05_custom_cnn/official has no saved predictions"):
        load_predictions(record)


def test_tables_come_back(own):
    rows = [{"patient": "001", "dice": 0.5, "note": None}, {"patient": "002", "dice": 1.0, "note": "ä"}]
    save_record(make_record(tables={"patients": rows}))
    assert load_records("05_custom_cnn")[0].tables == {"patients": rows}


@pytest.mark.parametrize("key", sorted(DATA))
def test_record_without_a_part_of_its_data_is_refused(key):
    with pytest.raises(DataError, match=f"05_custom_cnn/official.*lacks {key}"):
        make_record(data={k: v for k, v in DATA.items() if k != key})


@pytest.mark.parametrize("key", KEYS.split())
def test_file_without_a_key_is_refused(own, key):
    """Also without those that have a default: a record must not take on the machine that reads it."""
    path = save_record(make_record())
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=key) as caught:
        load_records("05_custom_cnn")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"metrics": {}}', '{"metrics": []}', '{"metrics": {"accuracy": 1}}', "\udcff"],
)
def test_damaged_file_is_refused(own, text):
    path = save_record(make_record())
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="is not a record") as caught:
        load_records("05_custom_cnn")
    assert str(path) in str(caught.value)


def test_what_is_being_written_is_not_read(own):
    save_record(make_record(), nn.Linear(2, 2))
    (own / "05_custom_cnn" / ".official-abcdefgh.json").write_text("half of")
    (own / "05_custom_cnn" / ".official-abcdefgh.safetensors").write_text("half of")
    assert len(load_records("05_custom_cnn")) == 1 and list_weights() == ["05_custom_cnn/official"]


def test_full_disk_keeps_the_old_record(tmp_path):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        save_record(make_record(), root=disk)
        before = tree(disk)
        with pytest.raises(DataError, match="disk is full"):
            save_record(make_record(settings={"note": "n" * 100_000}), root=disk)
        with pytest.raises(DataError, match="disk is full"):
            save_record(make_record(seconds=1.0), nn.Linear(300, 300), root=disk)
        assert tree(disk) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"tables": {"hd95": [math.inf]}},
        {"settings": {"epochs": np.int64(3)}},
        {"settings": {"arguments": {"activation": nn.ReLU}}},
    ],
    ids=["infinite", "numpy", "class"],
)
def test_what_json_cannot_hold_is_refused_before_anything_is_written(own, changes):
    save_record(make_record(), nn.Linear(2, 2), predictions={"test": make_predictions()})
    before = tree(own)
    with pytest.raises(DataError, match="05_custom_cnn/official holds what JSON cannot"):
        save_record(make_record(**changes), nn.Linear(3, 3), predictions={"test": make_predictions()})
    assert tree(own) == before


def test_peak_memory_of_a_gpu_is_that_of_one_training(monkeypatch):
    peak = {"now": 9}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peak.update(now=0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak["now"])
    assert peak_memory_bytes() == 9
    reset_peak_memory()
    assert peak_memory_bytes() == 0


# Weights --------------------------------------------------------------------------------------------------------------


def test_model_comes_back_within_half_precision(own):
    torch.manual_seed(0)
    model = CustomCNN(num_classes=3).to(memory_format=torch.channels_last)
    model(torch.rand(4, 3, 128, 128))  # moves the running statistics
    model.eval()
    save_record(make_record(settings={"arguments": {"num_classes": 3}}), model)
    assert list_weights() == ["05_custom_cnn/official"]
    assert (own / "05_custom_cnn" / "official.safetensors").stat().st_size < 2.05 * count_parameters(model)
    found = load_model("05_custom_cnn/official")
    assert not found.training and all(p.dtype == torch.float32 for p in found.parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=2**-11, atol=1e-7)
    images = torch.rand(2, 3, 128, 128)
    torch.testing.assert_close(found(images), model(images), atol=2e-3, rtol=0)


def test_unknown_weights_name_the_known_ones(own):
    with pytest.raises(DataError, match="there are: none yet"):
        load_model("05_custom_cnn/official")
    save_record(make_record("a"), nn.Linear(2, 2))
    save_record(make_record("b"), nn.Linear(2, 2))
    with pytest.raises(DataError, match="'05_custom_cnn/c'.*05_custom_cnn/a, 05_custom_cnn/b"):
        load_model("05_custom_cnn/c")


def test_weights_of_another_run_are_refused(own, capsys):
    model = CustomCNN()
    path = save_record(make_record(), model)
    record = load_records("05_custom_cnn")[0]
    assert record.weights_sha256 == hashlib.sha256(path.with_suffix(".safetensors").read_bytes()).hexdigest()
    save_record(record)  # the same run again, with another table, say: its weights stay its own
    assert load_model("05_custom_cnn/official") is not None
    save_record(make_record(seconds=1.0))  # another run of that name, without weights
    assert list_weights() == ["05_custom_cnn/official"]
    assert main(["weights"]) == 0
    assert "05_custom_cnn/official: cannot be used, the file holds weights of another run" in capsys.readouterr().out
    with pytest.raises(DataError, match="weights of another run than the record 05_custom_cnn/official"):
        load_model("05_custom_cnn/official")
    content = json.loads(path.read_text())
    del content["weights_sha256"]  # a record of before: nothing is known
    path.write_text(json.dumps(content))
    assert load_model("05_custom_cnn/official") is not None
    save_record(load_records("05_custom_cnn")[0])
    assert "weights_sha256" not in json.loads(path.read_text())
    assert load_model("05_custom_cnn/official") is not None


def test_each_folder_of_records_is_read_once(own, monkeypatch):
    save_record(make_record())
    read, read_text = [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, **options: read.append(self) or read_text(self, **options))
    load_records("05_custom_cnn")
    assert len(read) == 1


def test_weights_that_do_not_fit(own):
    path = save_record(make_record(), nn.Linear(2, 2)).with_suffix(".safetensors")
    with pytest.raises(DataError, match="does not fit custom_cnn") as caught:
        load_model("05_custom_cnn/official")
    assert str(path) in str(caught.value)
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="official.safetensors"):
        load_model("05_custom_cnn/official")
    path.with_suffix(".json").unlink()
    with pytest.raises(DataError, match="no record beside it"):
        load_model("05_custom_cnn/official")


# Predictions ----------------------------------------------------------------------------------------------------------


def make_predictions(count: int = 40, networks: bool = False, seed: int = 0, sharpness: float = 3) -> Predictions:
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.normal(size=(count, 4))
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    answered = np.arange(count) % 5 if networks else None
    return Predictions(probabilities, rng.integers(0, 4, count), rng.integers(0, 3000, count), answered)


@settings(deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.floats(0, 60), st.booleans())
def test_predictions_come_back(own, seed, sharpness, networks):
    """Labels and groups as they were; the logarithm of each probability within half a step of float16."""
    saved = make_predictions(30, networks, seed, sharpness)
    save_record(make_record(), predictions={"test": saved})
    found = load_predictions(load_records("05_custom_cnn")[0])["test"]
    for name in ("labels", "groups"):
        column = getattr(found, name)
        np.testing.assert_array_equal(column, getattr(saved, name))
        assert column.dtype == np.int64
    if networks:
        np.testing.assert_array_equal(found.networks, saved.networks)
    else:
        assert found.networks is None
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(found.probabilities, saved.probabilities, atol=1e-3)
    # All of a row share the change of its sum, which is far below the step of a large logarithm.
    logarithms = np.log(np.maximum(saved.probabilities, 1e-300))
    changed = np.abs(np.log(np.maximum(found.probabilities, 1e-300)) - logarithms)
    assert (changed <= -logarithms * 2.0**-11 + 1e-3).all()
    # A confidence of 0.9999 is not one of 0.999: its distance from 1 keeps two digits.
    distance = 1 - saved.probabilities.max(1)
    some = (distance > 1e-6) & (distance < 0.5)
    np.testing.assert_allclose(1 - found.probabilities.max(1)[some], distance[some], rtol=0.02)
    for metric, tolerance in ((mean_confidence, 5e-4), (accuracy, 0), (macro_f1, 1e-12)):
        values = [metric(p.probabilities, p.labels) for p in (saved, found)]
        first, second = np.sort(saved.probabilities, 1)[:, :-3:-1].T
        if metric is mean_confidence or (first > 1.002 * second).all():  # a tie may fall the other way
            assert values[0] == pytest.approx(values[1], abs=tolerance)


def test_predictions_lie_beside_the_record_by_name(own):
    test, validation = make_predictions(40, networks=True), make_predictions(25, seed=1)
    record = make_record("a")
    save_record(record, predictions={"test": test, "validation": validation})
    assert record.predictions == ["test", "validation"] and load_records("05_custom_cnn") == [record]
    assert sorted(tree(own)) == ["05_custom_cnn/a.json", "05_custom_cnn/a.predictions.npz"]
    assert list_weights() == []  # predictions are no weights
    found = load_predictions(record)  # where it was saved, without being loaded first
    assert list(found) == ["test", "validation"] and len(found["test"]) == 40 and len(found["validation"]) == 25
    assert found["validation"].networks is None and found["test"].networks is not None


def test_certain_predictions_come_back(own):
    certain = Predictions(np.eye(4)[[0, 1, 2]], np.array([0, 1, 3]), np.arange(3))
    save_record(record := make_record(), predictions={"test": certain})
    found = load_predictions(record)["test"].probabilities
    np.testing.assert_allclose(found, certain.probabilities, rtol=0, atol=1e-299)


def test_predictions_that_are_missing(own):
    with pytest.raises(DataError, match="05_custom_cnn/official has no saved predictions: make the run again"):
        load_predictions(make_record())
    save_record(record := make_record(), predictions={"test": make_predictions()})
    (own / "05_custom_cnn" / "official.predictions.npz").unlink()
    with pytest.raises(DataError, match="official.predictions.npz is missing: fetch it or make the run again"):
        load_predictions(record)
    save_record(make_record(), predictions={"validation": make_predictions()})
    with pytest.raises(DataError, match="official.predictions.npz is damaged.*test"):
        load_predictions(record)  # of the run before


def damages(content: bytes) -> dict[str, bytes]:
    """The file as a crash, a bad disk or a mistake may leave it."""
    array = io.BytesIO()
    np.save(array, np.arange(3))
    objects = io.BytesIO()
    np.savez(objects, **{f"test.{key}": np.array([{}]) for key in ("logarithms", "labels", "groups", "networks")})
    found = {
        "empty": b"",
        "text": b"<html>not found</html>",
        "one array": array.getvalue(),
        "objects": objects.getvalue(),
    }
    found |= {f"first {n}": content[:n] for n in (1, 30, len(content) // 2, len(content) - 1)}
    rng = np.random.default_rng(0)
    for place in rng.choice(len(content), 150, replace=False):
        flipped = bytearray(content)
        flipped[place] ^= int(rng.integers(1, 256))
        found[f"byte {place}"] = bytes(flipped)
    return found


def test_damaged_predictions_are_refused(own):
    save_record(record := make_record(), predictions={"test": make_predictions()})
    path = own / "05_custom_cnn" / "official.predictions.npz"
    before = load_predictions(record)["test"]
    refused = 0
    for name, content in damages(path.read_bytes()).items():
        path.write_bytes(content)
        try:
            found = load_predictions(record)["test"]
        except DataError as error:
            assert str(path) in str(error) and "make the run again" in str(error), name
            refused += 1
        else:  # a date in the archive, say: then nothing else has changed
            np.testing.assert_array_equal(found.probabilities, before.probabilities, err_msg=name)
            np.testing.assert_array_equal(found.labels, before.labels, err_msg=name)
            assert name.startswith("byte"), name
    assert refused > 75


# Figures --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def line():
    figure, ax = plt.subplots(figsize=(4, 2))
    ax.plot([0, 1], [0, 1])
    yield figure
    plt.close(figure)


def test_figures_lie_beside_the_record(own, line):
    record = make_record()
    save_record(record, figures={"roc-1": (line, ALT), "loss": (line, ALT)})
    assert record.figures == {"roc-1": ALT, "loss": ALT} and load_records("05_custom_cnn") == [record]
    names = ["official.json", "official.loss.webp", "official.roc-1.webp"]
    assert sorted(tree(own)) == [f"05_custom_cnn/{name}" for name in names]
    for shown in (show_figure(record, "loss"), show_figure(load_records("05_custom_cnn")[0], "loss")):
        data, metadata = shown._repr_mimebundle_()
        assert sorted(data) == ["image/png", "text/plain"]
        assert data["text/plain"] == "Figure loss of 05_custom_cnn/official"
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
        assert picture.format == "PNG" and 700 < picture.width < 900  # 4 inches at 200 dpi, cut to what is drawn
        assert metadata == {"image/png": {"alt": ALT, "width": round(0.55 * picture.width)}}


def test_a_second_run_removes_figures_that_it_does_not_have(own, line):
    save_record(make_record("official.b"), figures={"loss": (line, ALT)})
    save_record(make_record(), figures={"loss": (line, ALT), "roc": (line, ALT)})
    (first, _) = load_records("05_custom_cnn")
    save_record(first)  # keeps what it has
    assert len(tree(own)) == 5
    save_record(make_record(), figures={"roc": (line, ALT)})
    assert sorted(n.split("/")[1] for n in tree(own) if n.endswith("webp")) == [
        "official.b.loss.webp",
        "official.roc.webp",
    ]
    save_record(make_record())
    assert [n for n in tree(own) if n.endswith("webp")] == ["05_custom_cnn/official.b.loss.webp"]


def test_a_wide_figure_is_scaled_and_a_heavy_picture_shown_lighter(own, monkeypatch):
    noise = np.random.default_rng(0).random((60, 240))
    figure, ax = plt.subplots(figsize=(12, 3))
    ax.imshow(noise, interpolation="bicubic")
    save_record(make_record(), figures={"noise": (figure, ALT)})
    plt.close(figure)
    shown = show_figure(load_records("05_custom_cnn")[0], "noise")
    assert shown.image.width == 1400
    data, metadata = shown._repr_mimebundle_()
    assert sorted(data) == ["image/jpeg", "text/plain"]  # as PNG it would be too large
    assert len(data["image/jpeg"]) <= results.MAX_SHOWN_BYTES * 4 / 3 + 4 and metadata["image/jpeg"]["width"] == 770


@pytest.mark.parametrize(
    ("name", "alt", "message"),
    [
        ("a_b", ALT, "'a_b' of 05_custom_cnn/official: a name has lower-case"),
        ("../x", ALT, "a name has lower-case"),
        ("a", "A line.", "7 characters; describe it in 40"),
    ],
)
def test_a_figure_that_cannot_be_used_is_refused_before_anything_is_written(own, line, name, alt, message):
    with pytest.raises(DataError, match=message):
        save_record(make_record(), nn.Linear(2, 2), figures={"good": (line, ALT), name: (line, alt)})
    assert tree(own) == {}


def test_a_figure_that_is_too_large_is_refused(own, line, monkeypatch):
    monkeypatch.setattr(results, "MAX_FIGURE_BYTES", 1000)
    with pytest.raises(DataError, match="'loss' of 05_custom_cnn/official has . kB, more than 1 kB: show fewer"):
        save_record(make_record(), figures={"loss": (line, ALT)})
    assert tree(own) == {}


def test_a_figure_that_is_not_there(own, line):
    record = make_record(figures={"loss": ALT})
    with pytest.raises(DataError, match="neither saved nor loaded"):
        show_figure(record, "loss")
    save_record(record)
    with pytest.raises(DataError, match="official.loss.webp is missing"):
        show_figure(record, "loss")
    (own / "05_custom_cnn" / "official.loss.webp").write_bytes(b"damaged")
    with pytest.raises(DataError, match="official.loss.webp is no picture"):
        show_figure(record, "loss")
    with pytest.raises(DataError, match="no figure 'roc'; it has: loss"):
        show_figure(record, "roc")


# What the course has --------------------------------------------------------------------------------------------------


def test_the_records_of_the_course_are_those_in_the_book():
    assert results_root() == BOOK


def test_numbers_of_the_study():
    assert study_results("custom_cnn") == {
        "train_loss": 3.6e-3,
        "train_accuracy": 1.0,
        "train_confidence": 1.0,
        "test_accuracy": 0.99,
        "test_confidence": 1.0,
    }
    with pytest.raises(DataError, match="nothing for 'lenet'.*custom_cnn"):
        study_results("lenet")


def check_recorded_predictions(record: Record) -> None:
    """They are of the items that the record is about, and score what it says."""
    test = load_predictions(record)["test"]
    assert len(test) == record.data["test"]
    for name, metric in {"accuracy": accuracy, "macro_f1": macro_f1, "confidence": mean_confidence}.items():
        assert metric(test.probabilities, test.labels) == pytest.approx(record.metrics[name].value, abs=2e-3), name
    networks = record.data.get("networks", 1)
    assert test.networks is None or len(np.unique(test.networks)) == networks


@pytest.mark.parametrize("path", sorted(BOOK.glob("*/*.json")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recorded_run(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert sorted(KEYS.split() + LATER_KEYS) == sorted(f.name for f in fields(Record))
    assert sorted(set(content) - set(LATER_KEYS)) == sorted(KEYS.split())
    (record,) = [r for r in load_records(path.parent.name, profile=None, root=BOOK) if r.run == path.stem]
    assert record.chapter == path.parent.name and record.profile in ("demo", "full")
    assert record.model in [*list_models(), "several", "none"]
    assert re.fullmatch(r"[0-9a-f]{16}", record.data["fingerprint"])
    assert all(type(record.data[part]) is int for part in ("train", "validation", "test"))
    assert record.data["train"] >= (record.model in list_models()) and record.data["test"] > 0
    assert record.data["validation"] >= 0
    assert record.settings and (record.metrics or record.tables)
    for name, (value, low, high) in record.metrics.items():
        assert all(math.isfinite(x) for x in (value, low, high)), name
        assert low <= value <= high, name
        if name.startswith("accuracy"):
            assert 0 <= low and high <= 1
    assert (
        record.seeds and all(type(seed) is int for seed in record.seeds) and len(set(record.seeds)) == len(record.seeds)
    )
    assert record.seconds > 0 or record.model not in list_models()
    assert record.peak_memory_bytes > 0 and record.hardware and record.brainlib
    assert record.commit is None or re.fullmatch(r"[0-9a-f]{40}", record.commit)
    found = {p.name.split(".")[-2] for p in path.parent.glob(f"{path.stem}.*.webp")}
    assert found == set(record.figures) and all(len(alt) >= 40 for alt in record.figures.values())
    assert all(show_figure(record, name) for name in record.figures)
    assert path.with_suffix(".predictions.npz").exists() == bool(record.predictions)
    if record.predictions:
        check_recorded_predictions(record)
    text = path.read_text(encoding="utf-8")
    assert ABSOLUTE_PATH.search(text) is None  # of somebody's machine


@pytest.mark.parametrize("name", [f"{p.parent.name}/{p.stem}" for p in sorted(BOOK.glob("*/*.safetensors"))])
def test_recorded_weights(name):
    limit = 4e6 if find_record(name).model in SEGMENTER_RECIPES else 8 * 2**20
    assert (BOOK / f"{name}.safetensors").stat().st_size <= limit
    model = load_model(name)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
