"""The ``brainlib`` command: exit codes, messages, and what each subcommand does."""

import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_course import chapter, mark_fresh, write_course

import brainlib
from brainlib import course, notebooks


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A course of two fresh chapters, which is the working folder; its data root is empty."""
    root = write_course(tmp_path / "course", **{"01_a": chapter(), "02_b": chapter(number=2)})
    for path in notebooks.chapters(root):
        mark_fresh(root, path)
    (root / "benchmarks").mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path / "data"))
    return root


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["run"],
        ["check"],
        ["data"],
        ["data", "phantom"],
        ["data", "kaggle"],
        ["data", "check"],
        ["train"],
        ["weights"],
        ["bench"],
    ],
)
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        course.main([*command, "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("usage: brainlib")


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["fly"],
        ["run", "-p", "seed"],
        ["run", "--profile", "fast"],
        ["run", "--force", "--check"],
        ["train"],
        ["train", "linear", "--seed", "first"],
    ],
)
def test_wrong_usage_exits_with_2(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        course.main(command)
    assert exit_.value.code == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["run", "09"], "brainlib: 09: no such chapter. The chapters are: 02_b, 01_a"),
        (["check", "09"], "brainlib: 09: no such chapter"),
        (["run", "01", "-p", "epochs", "3"], "brainlib: 01_a has no parameter 'epochs'. Its parameters"),
        (["run", "--check", "-p", "epochs", "3"], "has no parameter 'epochs'"),
        (["run", "-p", "profile", "fast"], "brainlib: profile 'fast': choose one of demo, full"),
        (["run", "--profile", "demo", "-p", "profile", "full"], "contradict each other"),
        (["bench", "speed"], "brainlib: speed: no such benchmark"),
        (
            ["train", "lenet"],
            "brainlib: there is no recipe for 'lenet'; there are recipes for the classifiers custom_cnn, alexnet",
        ),
        (["train", "linear", "lenet"], "there is no recipe for 'lenet'"),
        (["train", "linear", "--split", "study", "random"], "brainlib: --split random: choose from study, official"),
        (["train", "clasic_unet"], "and for the segmenters classic_unet, improved_unet"),
        (
            ["weights", "05_custom_cnn/none"],
            "no recorded weights are called '05_custom_cnn/none'; there are: 05_custom_cnn",
        ),
        (["train", "linear", "--epochs", "0"], "brainlib: --epochs 0: it must be 1 or more"),
        (["train", "linear"], "brain-tumor-mri"),  # which is not there
    ],
)
def test_an_error_of_the_user_is_one_bare_message(folder, capsys, command, message):
    assert course.main(command) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_the_module_is_the_command(folder):
    command = [sys.executable, "-m", "brainlib"]
    answer = subprocess.run([*command, "run", "09"], capture_output=True, text=True, check=False)
    assert answer.returncode == 1 and answer.stderr.startswith("brainlib: 09: no such chapter")
    answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    assert answer.stdout == f"brainlib {brainlib.__version__}\n"


def test_an_interrupt_exits_with_130(folder, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("brainlib.execute.run_chapters", interrupted)
    assert course.main(["run"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_run_skips_fresh_chapters_and_check_says_which_are_stale(folder, capsys):
    assert course.main(["run"]) == 0
    assert capsys.readouterr().out.count("fresh, nothing to do") == 2
    assert course.main(["run", "--check"]) == 0
    assert course.main(["check"]) == 0
    assert "2 chapters checked, no problems" in capsys.readouterr().out
    path = folder / "chapters" / "01_a.ipynb"
    notebook = notebooks.read(path)
    notebook.cells[3].source += "\nx = 0.5"
    notebooks.write(path, notebook)
    assert course.main(["run", "--check"]) == 1
    assert capsys.readouterr().out == "02_b: fresh\n01_a: its code cells changed\n"
    assert course.main(["check", "01"]) == 1
    assert "01_a.ipynb: stale outputs" in capsys.readouterr().out
    assert course.main(["check", "02"]) == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.1", 0.1),
        ("True", True),
        ("[1, 2]", [1, 2]),
        ("None", None),
        ("adam", "adam"),
        ("1e", "1e"),
        ("", ""),
    ],
)
def test_parameter_values_are_python_literals_or_text(text, value):
    assert course.parse_value(text) == value and type(course.parse_value(text)) is type(value)


def test_profile_may_be_given_as_a_parameter():
    options = course.build_parser().parse_args(["run", "-p", "profile", "full", "-p", "seed", "2"])
    settings = course.read_settings(options)
    assert (settings.profile, settings.parameters) == ("full", {"seed": 2})


def test_data_check_names_what_is_missing_and_exits_with_1_for_half_a_set(folder, tmp_path, capsys):
    assert course.main(["data", "check", "--no-pictures"]) == 0
    out = capsys.readouterr().out
    assert out.count("not found at") == 4 and "brainlib data phantom" in out and "brainlib data kaggle mri" in out
    (tmp_path / "data" / "brain-tumor-mri" / "Training" / "glioma").mkdir(parents=True)
    (tmp_path / "data" / "brain-tumor-mri" / "Training" / "glioma" / "1.jpg").touch()
    assert course.main(["data", "check", "--no-pictures"]) == 1
    out = capsys.readouterr().out
    assert "brain-tumor-mri: incomplete, Training 1 (glioma 1)" in out and "1 of 7023 files" in out


@pytest.fixture
def records(tmp_path, monkeypatch):
    """A place for records that is not the book's."""
    from brainlib import results

    monkeypatch.setattr(results, "_SOURCE_TREE", tmp_path / "results")
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def test_train_writes_a_record_for_each_protocol_and_seed(folder, tmp_path, records, tiny_phantom, capsys, monkeypatch):
    from brainlib import evaluate
    from brainlib.data import load_mri
    from brainlib.evaluate import predict
    from brainlib.metrics import accuracy
    from brainlib.results import load_model, load_predictions, load_records

    monkeypatch.setattr(evaluate, "bootstrap", partial(evaluate.bootstrap, samples=50))  # 2,000 take seconds
    command = ["train", "linear", "--root", str(tiny_phantom), "--epochs", "2", "--split", "study", "official"]
    assert course.main([*command, "--seed", "0", "3", "--weights"]) == 0
    out = capsys.readouterr().out
    found = load_records("08_comparing_classifiers")
    names = [f"linear-{split}-{seed}-2-epochs" for split in ("official", "study") for seed in (0, 3)]
    assert [record.run for record in found] == names
    data = load_mri(tiny_phantom)
    for record in found:
        assert f"{record.run}: accuracy {record.metrics['accuracy']}, in {records}" in out
        assert record.data["fingerprint"] == data.fingerprint and record.settings["shortened"]
        test = load_predictions(record)["test"]
        assert accuracy(test.probabilities, test.labels) == pytest.approx(record.metrics["accuracy"].value)
        again = predict(load_model(record.name), data.subset(data.splits == "Testing"))
        assert again.probabilities == pytest.approx(test.probabilities, abs=2e-3)
    checkpoints = tmp_path / "data" / "runs" / "08_comparing_classifiers"
    assert sorted(path.stem for path in checkpoints.iterdir()) == names
    # The same command once more tests and records what it finds trained.
    times = {path: path.stat().st_mtime_ns for path in checkpoints.iterdir()}
    seconds = [record.seconds for record in found]
    assert course.main(command) == 0
    assert times == {path: path.stat().st_mtime_ns for path in checkpoints.iterdir()}
    assert [record.seconds for record in load_records("08_comparing_classifiers")] == seconds


def test_train_segments_volumes_and_records_by_patient(folder, tmp_path, records, capsys, monkeypatch):
    from data.brats_files import make_volume, write_nifti

    from brainlib import segmenters
    from brainlib.data.brats import dataset
    from brainlib.results import load_model, load_records

    shape = (32, 32, 155)
    monkeypatch.setattr("brainlib.data.load_brats", lambda root, progress: dataset._load(root, workers=1, shape=shape))
    recipe = replace(segmenters.get_segmenter_recipe("classic_unet"), arguments={"n_filters": 2})
    monkeypatch.setitem(segmenters.SEGMENTER_RECIPES, "classic_unet", recipe)
    root = tmp_path / "brats2020"
    for number in range(1, 5):
        write_nifti(root, f"BraTS20_Training_{400 + number}", make_volume(number, shape))
    command = ["train", "classic_unet", "--root", str(root), "--epochs", "1", "--weights"]
    assert course.main([*command, "--split", "patient", "study"]) == 0
    out = capsys.readouterr().out
    patient, study = load_records("14_comparing_segmenters")
    assert [patient.run, study.run] == ["classic_unet-patient-0-1-epochs", "classic_unet-study-0-1-epochs"]
    assert f"{patient.run}: dice_wt {patient.metrics['dice_wt']}, in {records}" in out
    assert [patient.data[part] for part in ("train", "validation", "test")] == [2, 1, 1]
    assert load_model(patient.name)(torch.zeros(1, 4, 32, 32)).shape == (1, 3, 32, 32)
    assert len(list((tmp_path / "data" / "runs" / "14_comparing_segmenters").iterdir())) == 2
    assert course.main(["train", "classic_unet", "linear"]) == 1
    assert "two commands" in capsys.readouterr().err
    small = replace(segmenters.get_segmenter_recipe("compact_unet"), crop=None, draws=8)
    monkeypatch.setitem(segmenters.SEGMENTER_RECIPES, "compact_unet", small)
    assert course.main([*command, "--habits", "course"]) == 0
    alike = load_records("14_comparing_segmenters")[0]
    assert alike.run == "classic_unet-course-patient-0-1-epochs"
    assert alike.settings["loss"] == "batch_dice_bce" and alike.settings["arguments"] == {
        "n_filters": 2,
        "in_channels": 12,
    }
    assert load_model(alike.name)(torch.zeros(1, 12, 32, 32)).shape == (1, 3, 32, 32)
    assert course.main(["train", "linear", "--habits", "course"]) == 1
    assert "only segmenters" in capsys.readouterr().err
    assert course.main([*command, "--split", "grouped"]) == 1
    assert "choose from study, patient" in capsys.readouterr().err


def test_train_refuses_before_it_has_worked(folder, tmp_path, records, tiny_phantom):
    """A wrong name at the end of the line does not cost the hours of the first."""
    assert course.main(["train", "linear", "lenet", "--root", str(tiny_phantom)]) == 1
    assert list(records.iterdir()) == [] and not (tmp_path / "data" / "runs").exists()


def test_weights_lists_the_recorded_models(folder, capsys):
    from brainlib.results import list_weights

    assert course.main(["weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == list_weights()
    assert lines[-1].endswith("recorded models")


def test_weights_describes_one_model(folder, capsys):
    assert course.main(["weights", "14_comparing_segmenters/compact_unet-patient-0-6-epochs"]) == 0
    out = capsys.readouterr().out
    assert "compact_unet, " in out and " parameters, 2.0 MB" in out and "dice_wt: 0." in out
    assert out.splitlines()[-1] == "For teaching and research, not a medical device."


def test_bench_runs_the_scripts_and_reports_the_failing_one(folder, capfd):
    (folder / "benchmarks" / "good.py").write_text("print('400 images a second')\n")
    assert course.main(["bench"]) == 0
    assert "400 images a second" in capfd.readouterr().out
    (folder / "benchmarks" / "broken.py").write_text("raise SystemExit(3)\n")
    assert course.main(["bench"]) == 1
    assert "1 of 2 benchmarks failed: broken" in capfd.readouterr().err
    assert course.main(["bench", "good.py"]) == 0


def test_a_missing_package_of_the_machinery_is_named(folder, monkeypatch, capsys):
    def broken(*args):
        raise ModuleNotFoundError("No module named 'papermill'", name="papermill")

    monkeypatch.setattr("brainlib.execute.run_chapters", broken)
    assert course.main(["run"]) == 1
    assert "pip install -r requirements.txt" in capsys.readouterr().err
