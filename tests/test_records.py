"""The weights that come with the course score what their records say, on the slices that the records are about."""

import pytest

from brainlib.data import load_mri
from brainlib.evaluate import predict
from brainlib.metrics import accuracy
from brainlib.results import list_weights, load_model, load_records


@pytest.mark.parametrize("run", ["study", "official"])
def test_weights_score_what_their_record_says(real_mri, run):
    assert f"05_custom_cnn/{run}" in list_weights()
    record = next(r for r in load_records("05_custom_cnn") if r.run == run)
    test = load_mri(real_mri, split="Testing")
    assert len(test) == record.data["test"]
    predictions = predict(load_model(f"05_custom_cnn/{run}"), test)
    found = accuracy(predictions.probabilities, predictions.labels)
    # The record is the mean of three seeds and the weights are those of the first, rounded to float16.
    assert found == pytest.approx(record.metrics["accuracy"].value, abs=0.01)
