"""The benchmark runs from end to end, without data too. What it measures is not judged here."""

import re
import runpy


def test_custom_cnn_prints_its_numbers(repository, capsys):
    benchmark = runpy.run_path(str(repository / "benchmarks" / "custom_cnn.py"))
    benchmark["main"](["--images", "16", "--seconds", "0.01"])
    out = capsys.readouterr().out
    assert "hardware: " in out and "threads" in out and "16 slices of 128 pixels" in out
    for letter in "abc":
        assert re.search(rf"^\({letter}\) .* \d+ images/s", out, re.MULTILINE)
