"""The benchmarks run from end to end, without data too. What they measure is not judged here."""

import re
import runpy

import pytest


@pytest.fixture
def benchmark(repository, monkeypatch):
    """``benchmark(name, arguments)`` runs one as the command line does."""
    monkeypatch.syspath_prepend(repository / "benchmarks")  # where Python looks first when it runs a script
    return lambda name, arguments: runpy.run_path(str(repository / "benchmarks" / f"{name}.py"))["main"](arguments)


def test_custom_cnn_prints_its_numbers(benchmark, capsys):
    benchmark("custom_cnn", ["--images", "16", "--seconds", "0.01"])
    out = capsys.readouterr().out
    assert "hardware: " in out and "threads" in out and "16 slices of 128 pixels" in out
    for letter in "abc":
        assert re.search(rf"^\({letter}\) .* \d+ images/s", out, re.MULTILINE)


def test_precision_prints_both_formats_and_their_ratio(benchmark, capsys):
    benchmark("precision", ["--models", "compact_unet", "--batch", "1", "--steps", "1"])
    out = capsys.readouterr().out
    assert "hardware: " in out and "by itself: " in out
    found = re.search(
        r"^compact_unet: float32 ([\d.]+), bfloat16 ([\d.]+) slices/s; ratio ([\d.]+)$", out, re.MULTILINE
    )
    assert found and float(found[3]) == pytest.approx(float(found[2]) / float(found[1]), rel=0.2)


def test_classifiers_prints_both_ways_of_each_model(benchmark, capsys):
    benchmark("classifiers", ["--models", "alexnet", "compact_transformer", "--images", "8", "--seconds", "0.01"])
    out = capsys.readouterr().out
    assert "hardware: " in out and "8 slices of 128 pixels" in out
    for name in ("alexnet", "compact_transformer"):
        for what in ("training", "inference"):
            found = re.search(rf"^{name}: {what} +\(a\) ([\d.]+) images/s, \(b\) ([\d.]+);", out, re.MULTILINE)
            assert found, out
            assert float(found[1]) > 0 and float(found[2]) > 0


def test_classifiers_refuses_a_model_without_a_recipe(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark("classifiers", ["--models", "resnet"])
    assert "resnet" in capsys.readouterr().err


def test_segmenters_prints_both_ways_of_each_model(benchmark, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("BRAINLIB_DATA", str(tmp_path))  # a few volumes of noise
    benchmark("segmenters", ["--models", "classic_unet", "compact_unet", "--slices", "4", "--seconds", "0.01"])
    out = capsys.readouterr().out
    assert "hardware: " in out and "4 slices" in out
    for name in ("classic_unet", "compact_unet"):
        for what in ("training", "inference"):
            found = re.search(rf"^{name}: {what} +\(a\) ([\d.]+) slices/s, \(b\) ([\d.]+);", out, re.MULTILINE)
            assert found, out
            assert float(found[1]) > 0 and float(found[2]) > 0
