"""Training: it learns, it repeats to the last bit, it survives being killed, and it refuses what would mislead."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import mounted, random_slices, striped_slices, tiny_network, tree
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, MultiStepLR, StepLR

from brainlib.data import Augment, DataError
from brainlib.evaluate import predict
from brainlib.models import CustomCNN
from brainlib.recipes import WarmCosine
from brainlib.train import LATER_SETTINGS, History, automatic_precision, fit, seed_everything, top1

pytestmark = pytest.mark.usefixtures("one_thread")


def train(
    epochs: int = 3,
    *,
    seed: int = 0,
    data=None,
    validation=None,
    make_optimizer=lambda parameters: Adam(parameters, lr=3e-3),
    make_scheduler=None,
    dropout: float = 0.25,
    **options,
) -> tuple[nn.Module, History]:
    """Fit a fresh tiny network; what is not given has a default that every test below can share."""
    seed_everything(seed)
    model = tiny_network(dropout)
    optimizer = make_optimizer(model.parameters())
    options = {"batch_size": 16, "progress": False, "precision": "32-true", "seed": seed} | options
    history = fit(
        model,
        striped_slices(48) if data is None else data,
        validation,
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer) if make_scheduler else None,
        epochs=epochs,
        **options,
    )
    return model, history


def numbers(history: History) -> dict:
    """The history without the clock."""
    return {k: v for k, v in asdict(history).items() if k != "seconds"}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def held_out(count: int = 32):
    return striped_slices(count, seed=1, first_group=1000)


# Learning -------------------------------------------------------------------------------------------------------------


def test_custom_cnn_learns_32_random_images_by_heart():
    data = random_slices(32, size=128)
    seed_everything(0)
    model = CustomCNN(dropout=0.0)
    history = fit(model, data, optimizer=Adam(model.parameters(), lr=1e-3), epochs=12, batch_size=16, progress=False)
    assert history.train_score[-1] == 1 and history.train_loss[-1] < 0.1 < 1 < history.train_loss[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "auto"])
def test_precisions(precision):
    model, history = train(12, precision=precision, validation=held_out())
    assert history.validation_score[-1] > 0.6
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "has", "precision"),
    [
        ("AMD EPYC", {"avx512_bf16"}, "bf16-mixed"),
        ("Intel Xeon", {"avx512_bf16", "amx_bf16"}, "bf16-mixed"),
        ("Intel Xeon", {"avx512_bf16"}, "32-true"),  # it has the instructions, and they are slow
        ("AMD EPYC", set(), "32-true"),
        (None, set(), "32-true"),
    ],
)
def test_precision_is_the_quick_one_of_a_processor(monkeypatch, name, has, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = {"cpu_name": name} | {key: key in has for key in ("avx512_bf16", "amx_bf16")}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found if name else {}, raising=False)
    assert automatic_precision() == precision


def test_model_is_left_in_evaluation_mode_with_the_best_weights():
    validation = held_out()
    model, history = train(6, validation=validation, make_optimizer=lambda p: Adam(p, lr=3e-2))
    assert not any(module.training for module in model.modules())
    best = int(np.argmax(history.validation_score))
    assert history.best_epoch == best and best < 5, "the test needs a best epoch that is not the last"
    predicted = predict(model, validation)
    assert (predicted.probabilities.argmax(1) == predicted.labels).mean() == pytest.approx(
        history.validation_score[best]
    )
    # The same run, stopped at its best epoch.
    stopped, _ = train(best + 1, validation=validation, make_optimizer=lambda p: Adam(p, lr=3e-2))
    assert same(model, stopped)
    last, kept = train(6, validation=validation, make_optimizer=lambda p: Adam(p, lr=3e-2), keep="last")
    assert kept.best_epoch == 5 and not same(model, last)
    assert numbers(kept) | {"best_epoch": best} == numbers(history)


def test_scores_may_be_negative():
    """A score such as a negative error is below zero in every epoch, and still has a best one."""
    scores = lambda outputs, targets: -10 - F.cross_entropy(outputs, targets, reduction="none")  # noqa: E731
    _, history = train(3, validation=held_out(), score=scores)
    assert history.best_epoch == int(np.argmax(history.validation_score))


def test_history_has_an_entry_for_each_epoch():
    _, history = train(4, validation=held_out())
    lists = {k: v for k, v in asdict(history).items() if isinstance(v, list)}
    assert len(history) == 4 and {len(v) for v in lists.values()} == {4} and len(lists) == 6
    assert min(history.seconds) > 0 and json.loads(json.dumps(history.to_dict())) == asdict(history)
    _, alone = train(2)
    assert alone.validation_loss == alone.validation_score == [] and alone.best_epoch == 1


def test_first_loss_and_score_are_those_of_the_first_pass():
    """One batch, no dropout: the loss of epoch 1 is that of the fresh network in training mode."""
    data = striped_slices(16)
    _, history = train(1, data=data, dropout=0.0)
    seed_everything(0)
    model = tiny_network(0.0).train()
    images, labels = data.batch(torch.arange(16))
    outputs = model((images.float() / 255).expand(-1, 3, -1, -1))
    assert history.train_loss[0] == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-5)
    assert history.train_score[0] == (outputs.argmax(1) == labels).float().mean().item()


def test_a_last_small_batch_counts_by_its_items():
    """40 items in batches of 16: the mean over items, not over batches. At learning rate 0 it can be known."""
    data = striped_slices(40)
    still = {"make_optimizer": lambda p: SGD(p, lr=0.0), "dropout": 0.0}
    model, history = train(1, data=data, validation=data, overlap="allow", **still)
    images, labels = data.batch(torch.arange(40))
    with torch.inference_mode():
        outputs = model((images.float() / 255).expand(-1, 3, -1, -1))
    assert history.validation_loss[0] == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-5)
    assert history.validation_score[0] == pytest.approx((outputs.argmax(1) == labels).float().mean().item())
    size_of_batch = lambda outputs, targets: 0 * outputs.sum() + len(targets)  # noqa: E731
    _, history = train(1, data=data, validation=data, overlap="allow", loss=size_of_batch)
    assert history.train_loss[0] == pytest.approx((16 * 16 + 16 * 16 + 8 * 8) / 40)
    assert history.validation_loss[0] == pytest.approx((32 * 32 + 8 * 8) / 40)  # twice as large without gradients


def test_every_item_is_seen_once_in_an_epoch_and_in_another_order():
    seen = []

    class Watched:
        def __init__(self, data):
            self.data, self.groups, self.channels, self.fingerprint = data, data.groups, 3, data.fingerprint

        def __len__(self):
            return len(self.data)

        def batch(self, index):
            seen.append(index.tolist())
            return self.data.batch(index)

    train(2, data=Watched(striped_slices(40)))
    assert [len(batch) for batch in seen] == [16, 16, 8] * 2
    first, second = sum(seen[:3], []), sum(seen[3:], [])
    assert sorted(first) == sorted(second) == list(range(40)) and first != second


def test_learning_rates_are_those_of_the_schedule():
    halved = lambda optimizer: StepLR(optimizer, 2, gamma=0.5)  # noqa: E731
    assert train(5, make_scheduler=halved)[1].learning_rate == pytest.approx([3e-3, 3e-3, 1.5e-3, 1.5e-3, 0.75e-3])
    decayed = lambda optimizer: ExponentialLR(optimizer, 0.9)  # noqa: E731
    assert train(4, make_scheduler=decayed)[1].learning_rate == pytest.approx([3e-3 * 0.9**e for e in range(4)])
    assert train(2)[1].learning_rate == [3e-3, 3e-3]


def test_augmentation_is_applied_to_training_and_not_to_validation():
    calls = []

    class Recorded(Augment):
        def __call__(self, images, generator=None):
            calls.append(images.shape)
            assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
            return super().__call__(images, generator)

    train(1, validation=held_out(), augment=Recorded())
    assert calls == [(16, 1, 32, 32)] * 3


def test_progress_leaves_one_plain_line(capsys):
    train(3, validation=held_out(), progress=True, label="network A")
    out, err = capsys.readouterr()
    assert err == ""
    # What a terminal shows: a carriage return goes back to the start of the line, and later text covers earlier text.
    lines = []
    for line in out.split("\n"):
        shown = ""
        for piece in line.split("\r"):
            shown = piece + shown[len(piece) :]
        lines.append(shown.rstrip())
    assert lines[1:] == [""]
    assert lines[0].startswith("network A: 3 epochs, ") and "validation" in lines[0] and "|" not in lines[0]
    train(1, progress=False)
    assert capsys.readouterr() == ("", "")


# Repeating ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_seed_decides_everything(precision):
    options = {"augment": Augment(), "precision": precision, "validation": held_out()}
    first, history = train(2, **options)
    torch.rand(5), np.random.rand(5)  # noqa: NPY002  what was drawn before does not matter
    second, again = train(2, **options)
    other, different = train(2, **options, seed=1)
    assert same(first, second) and numbers(history) == numbers(again)
    assert not same(first, other) and history.train_loss != different.train_loss


def test_the_seed_decides_order_and_dropout_of_equal_weights():
    def from_the_same_weights(seed):
        seed_everything(0)
        model = tiny_network()
        optimizer = Adam(model.parameters(), lr=3e-3)
        fit(model, striped_slices(48), optimizer=optimizer, epochs=1, batch_size=16, seed=seed, progress=False)
        return model

    assert same(from_the_same_weights(4), from_the_same_weights(4))
    assert not same(from_the_same_weights(4), from_the_same_weights(5))


OPTIMIZERS = {
    "Adam": lambda p: Adam(p, lr=3e-3, weight_decay=1e-5),
    "fused Adam": lambda p: Adam(p, lr=3e-3, weight_decay=1e-5, fused=True),
    "SGD": lambda p: SGD(p, lr=0.05, momentum=0.9),
}
SCHEDULERS = {
    "none": None,
    "step": lambda optimizer: StepLR(optimizer, 2, gamma=0.3),
    "exponential": lambda optimizer: ExponentialLR(optimizer, 0.8),
    "milestones": lambda optimizer: MultiStepLR(optimizer, [1, 3], gamma=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("keep", ["best", "last"])
def test_resumed_run_equals_uninterrupted_run(tmp_path, optimizer, scheduler, keep):
    options = {
        "make_optimizer": OPTIMIZERS[optimizer],
        "make_scheduler": SCHEDULERS[scheduler],
        "validation": held_out(),
        "augment": Augment(),
        "keep": keep,
    }
    straight, expected = train(5, **options)
    for epochs in (1, 3, 5):
        resumed, history = train(epochs, checkpoint=tmp_path / "run.safetensors", **options)
        assert len(history) == epochs
    assert same(straight, resumed) and numbers(history) == numbers(expected)
    assert list(tree(tmp_path)) == ["run.safetensors"]


def test_custom_cnn_with_fused_adam_resumes(tmp_path):
    """Channels-last weights and a fused optimizer, as the chapter trains: the moments must lie as the weights do."""

    def run(epochs, checkpoint):
        seed_everything(0)
        model = CustomCNN()
        optimizer = Adam(model.parameters(), lr=1e-4, fused=True)
        fit(model, data, optimizer=optimizer, epochs=epochs, batch_size=8, checkpoint=checkpoint, progress=False)
        return model

    data = random_slices(8, size=128)
    run(1, tmp_path / "run.safetensors")
    assert same(run(2, tmp_path / "run.safetensors"), run(2, None))


# A process that imports torch once and then trains in forked children, which are killed at random moments.
KILLER = """
import json, os, pathlib, random, signal, sys, time
import torch
from torch.optim import Adam
from torch.optim.lr_scheduler import ExponentialLR, StepLR
from safetensors.torch import save_file
from helpers import striped_slices, tiny_network
from brainlib.data import Augment
from brainlib.train import fit, seed_everything

torch.set_num_threads(1)
folder = pathlib.Path(sys.argv[1])
checkpoints = folder / "checkpoints"  # alone here: a kill while the end is saved, below, is no matter of theirs
schedules = {"step": lambda o: StepLR(o, 2, gamma=0.5), "exponential": lambda o: ExponentialLR(o, 0.8)}

def work(schedule, name):
    seed_everything(0)
    model = tiny_network()
    optimizer = Adam(model.parameters(), lr=3e-3, fused=True)
    history = fit(
        model, striped_slices(160), striped_slices(32, seed=1, first_group=1000), optimizer=optimizer,
        scheduler=schedules[schedule](optimizer), epochs=8, batch_size=8, augment=Augment(), progress=False,
        checkpoint=checkpoints / f"{name}.safetensors" if name.startswith("killed") else None, precision="32-true",
    )
    numbers = {k: v for k, v in history.to_dict().items() if k != "seconds"}
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / f"{name}-end.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(numbers))

def start(*arguments):
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child

def written(checkpoint):
    return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

random.seed(0)
for schedule in schedules:
    began = time.perf_counter()
    assert os.waitpid(start(schedule, f"straight-{schedule}"), 0)[1] == 0
    epoch = (time.perf_counter() - began) / 8
    checkpoint = checkpoints / f"killed-{schedule}.safetensors"
    kills, places, status = 0, set(), 1
    while status:
        child = start(schedule, f"killed-{schedule}")
        ended = (0, 0)
        if kills < 12:  # then it may finish
            # In the first, second or third epoch of this start, early or late in it.
            for _ in range(random.choice([0, 1, 2])):
                before = written(checkpoint)
                while written(checkpoint) == before and ended[0] == 0:
                    time.sleep(0.001)
                    ended = os.waitpid(child, os.WNOHANG)
            time.sleep(random.uniform(0, epoch))
            if ended[0] == 0:
                os.kill(child, signal.SIGKILL)
        status = ended[1] if ended[0] else os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        kills += status != 0
        places.add(written(checkpoint))
    print(json.dumps({"kills": kills, "places": len(places)}), flush=True)
"""


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLER, str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return folder, [json.loads(line) for line in answer.stdout.splitlines()]


@pytest.mark.parametrize(("place", "schedule"), [(0, "step"), (1, "exponential")])
def test_killed_run_ends_like_one_that_was_not(killed_runs, place, schedule):
    folder, reports = killed_runs
    assert reports[place]["kills"] >= 2 and reports[place]["places"] >= 2, "it was hardly killed"
    straight, killed = (load_file(folder / f"{name}-{schedule}-end.safetensors") for name in ("straight", "killed"))
    assert straight.keys() == killed.keys() and all(torch.equal(straight[k], killed[k]) for k in straight)
    texts = [(folder / f"{name}-{schedule}.json").read_text() for name in ("straight", "killed")]
    assert texts[0] == texts[1] and len(json.loads(texts[0])["train_loss"]) == 8
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["killed-exponential.safetensors", "killed-step.safetensors"]  # no half-written one is left


# Checkpoints ----------------------------------------------------------------------------------------------------------


def test_finished_checkpoint_is_not_trained_again(tmp_path):
    path = tmp_path / "run.safetensors"
    first, history = train(3, validation=held_out(), checkpoint=path)
    before = path.stat().st_mtime_ns, path.read_bytes()

    def no_loss(outputs, targets):
        raise AssertionError("trained again")

    no_loss.__name__ = "cross_entropy"  # the checkpoint knows its loss by name
    second, again = train(3, validation=held_out(), checkpoint=path, loss=no_loss)
    assert same(first, second) and asdict(history) == asdict(again) and not second.training
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


def refused(path: Path, **options) -> str:
    """The message of the DataError; the checkpoint is left as it is."""
    before = tree(path.parent)
    with pytest.raises(DataError) as caught:
        train(**{"epochs": 3, "checkpoint": path} | options)
    assert tree(path.parent) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"batch_size": 8}, "batch_size was 16, now 8"),
        ({"precision": "bf16-mixed"}, "precision was"),
        ({"augment": Augment()}, "augment was None"),
        ({"data": random_slices(48, seed=5)}, "train was"),
        ({"validation": held_out()}, "validation was None"),
        ({"loss": nn.MSELoss()}, "loss was cross_entropy, now MSELoss"),
        ({"make_optimizer": lambda p: Adam(p, lr=1e-3)}, "optimizer was"),
        ({"make_optimizer": lambda p: SGD(p, lr=3e-3)}, "optimizer was"),
        ({"make_scheduler": None}, "scheduler was StepLR, now None"),
        ({"make_scheduler": lambda o: ExponentialLR(o, 0.5)}, "scheduler was StepLR, now ExponentialLR"),
        ({"make_scheduler": lambda o: StepLR(o, 2, gamma=0.5)}, "scheduler's step_size was 1, now 2"),
        ({"epochs": 1}, "holds 2 epochs, more than the 1"),
        ({"dropout": 0.5}, "layers was"),
        ({"score": lambda outputs, targets: top1(outputs, targets)}, "score was top1, now <lambda>"),
        ({"loss": partial(F.cross_entropy, label_smoothing=0.1)}, "loss was cross_entropy, now partial"),
    ],
)
def test_checkpoint_of_another_run_is_refused(tmp_path, change, words):
    path = tmp_path / "run.safetensors"
    schedule = {"make_scheduler": lambda o: StepLR(o, 1, gamma=0.5)}
    train(2, checkpoint=path, **schedule)
    message = refused(path, **schedule | change)
    assert words in message and str(path) in message and "delete it" in message


def test_checkpoint_of_other_layers_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    model = nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten())
    optimizer = Adam(model.parameters(), lr=3e-3)
    options = {"optimizer": optimizer, "batch_size": 16, "progress": False, "precision": "32-true", "checkpoint": path}
    fit(model, striped_slices(48), epochs=1, **options)
    assert "layers was" in refused(path)
    forget(path, "layers", "model")  # as if the class had the same name, in a checkpoint of an earlier version
    assert "other layers" in refused(path)


@pytest.mark.parametrize(
    "other",
    [
        nn.CrossEntropyLoss(label_smoothing=0.2),
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0, 4.0]), label_smoothing=0.1),
        nn.CrossEntropyLoss(ignore_index=0, label_smoothing=0.1),
    ],
    ids=["smoothing", "weights", "ignored"],
)
def test_a_loss_with_other_settings_is_refused(tmp_path, other):
    path = tmp_path / "run.safetensors"
    train(1, checkpoint=path, loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    assert "loss's settings was" in refused(path, loss=other)
    train(2, checkpoint=path, loss=nn.CrossEntropyLoss(label_smoothing=0.1))  # another object, the same loss


def forget(path: Path, *names: str) -> None:
    """Take settings out of the header of a checkpoint, or (model) give the one that the tests use."""
    with safe_open(path, "pt") as stored:
        header = json.loads(stored.metadata()["brainlib"])
        tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}
    for name in names:
        if name == "model":
            header["settings"]["model"] = "Sequential"
        elif name == "schedule":
            header["scheduler"]["lr_lambdas"] = [None]
        else:
            del header["settings"][name]
    save_file(tensors, path, {"brainlib": json.dumps(header)})


def test_another_horizon_of_the_cosine_schedule_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    schedule = lambda epochs: {"make_scheduler": lambda o: LambdaLR(o, WarmCosine(epochs))}  # noqa: E731
    train(2, checkpoint=path, **schedule(4))
    message = refused(path, **schedule(6))
    assert "scheduler's lr_lambdas was [{'epochs': 4" in message
    resumed, history = train(4, checkpoint=path, **schedule(4))
    straight, expected = train(4, **schedule(4))
    assert same(resumed, straight) and history.learning_rate == expected.learning_rate


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path):
    """It knows neither layers nor score nor settings of the loss, and nothing of a schedule that was a function."""
    path = tmp_path / "run.safetensors"
    cosine = {"make_scheduler": lambda o: LambdaLR(o, WarmCosine(4))}
    train(2, checkpoint=path, **cosine)
    forget(path, *LATER_SETTINGS, "schedule")
    resumed, history = train(4, checkpoint=path, **cosine)
    straight, expected = train(4, **cosine)
    assert same(resumed, straight) and numbers(history) == numbers(expected)


def test_what_to_keep_cannot_be_changed_to_a_best_that_is_gone(tmp_path):
    path = tmp_path / "run.safetensors"
    options = {"validation": held_out(), "make_optimizer": lambda p: Adam(p, lr=3e-2)}
    last, history = train(6, checkpoint=path, keep="last", **options)
    assert np.argmax(history.validation_score) < 5
    assert "best" in refused(path, epochs=6, keep="best", **options)
    path.unlink()
    train(6, checkpoint=path, keep="best", **options)
    again, kept = train(6, checkpoint=path, keep="last", **options)  # the last weights are in every checkpoint
    assert same(last, again) and kept.best_epoch == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: b"I am no checkpoint",
        lambda b: b"\xff" * 8 + b[8:],
        lambda b: b.replace(b'\\"history\\"', b'\\"histosy\\"'),
        lambda b: b.replace(b"train_loss", b"train_lost"),
        lambda b: b.replace(b"__metadata__", b"__metadate__"),
    ],
)
def test_damaged_checkpoint_is_refused(tmp_path, damage):
    path = tmp_path / "run.safetensors"
    train(1, checkpoint=path)
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    message = refused(path)
    assert str(path) in message and "damaged" in message and "delete it" in message


@pytest.mark.parametrize("header", [None, {"brainlib": "[]"}, {"brainlib": "{}"}, {"brainlib": "text"}, {"other": "1"}])
def test_foreign_safetensors_file_is_refused(tmp_path, header):
    path = tmp_path / "run.safetensors"
    save_file({"weight": torch.zeros(3)}, path, header)
    assert "not a checkpoint" in refused(path)


def test_full_disk_keeps_the_old_checkpoint(tmp_path):
    # The first checkpoint fits; the second cannot be written beside it.
    with mounted(tmp_path / "disk", "size=96k") as disk:
        path = disk / "run.safetensors"
        train(1, checkpoint=path)
        size = path.stat().st_size
        assert 48 * 1024 < size < 96 * 1024
        assert "disk is full" in refused(path)
        rescued = tmp_path / "run.safetensors"
        rescued.write_bytes(path.read_bytes())
    resumed, history = train(3, checkpoint=rescued)
    straight, expected = train(3)
    assert same(resumed, straight) and numbers(history) == numbers(expected)


def test_checkpoint_that_cannot_be_written(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    assert "runs/run.safetensors" in refused(tmp_path / "runs" / "run.safetensors")


def test_leftover_of_a_killed_write_is_removed(tmp_path):
    (tmp_path / ".run-a1b2c3d4.safetensors").write_bytes(b"half")
    (tmp_path / ".run2-a1b2c3d4.safetensors").write_bytes(b"of another run")
    train(1, checkpoint=tmp_path / "run.safetensors")
    assert sorted(tree(tmp_path)) == [".run2-a1b2c3d4.safetensors", "run.safetensors"]


# Refusals -------------------------------------------------------------------------------------------------------------


def test_a_group_on_both_sides_is_refused():
    validation = held_out()
    validation.groups[0] = 5
    with pytest.raises(DataError, match="training and validation share 1 group"):
        train(1, validation=validation)
    _, history = train(1, validation=validation, overlap="allow")
    assert len(history.validation_score) == 1


def test_wrong_words():
    with pytest.raises(DataError, match="keep='first'"):
        train(1, keep="first")
    with pytest.raises(DataError, match="overlap='maybe'"):
        train(1, overlap="maybe")


def test_empty_data():
    empty = striped_slices(4).subset(np.array([], int))
    with pytest.raises(DataError, match="empty"):
        train(1, data=empty)
    with pytest.raises(DataError, match="empty"):
        train(1, validation=empty)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, capsys, value):
    path = tmp_path / "run.safetensors"
    train(1, checkpoint=path)
    before = path.read_bytes()

    def broken(outputs, targets):
        return F.cross_entropy(outputs, targets) * value

    broken.__name__ = "cross_entropy"
    with pytest.raises(FloatingPointError, match="loss became (nan|inf) in epoch 2.*learning rate"):
        train(3, checkpoint=path, loss=broken, progress=True)
    assert path.read_bytes() == before  # the last sound epoch is still there
    assert capsys.readouterr().err == ""


def test_no_epochs_asked_for():
    model, history = train(0)
    seed_everything(0)
    assert same(model, tiny_network()) and len(history) == 0 and not model.training


def test_one_channel_models_take_the_gray_channel():
    data = replace(striped_slices(16), channels=1)
    model = nn.Sequential(nn.Conv2d(1, 4, 32), nn.Flatten())
    optimizer = Adam(model.parameters())
    assert len(fit(model, data, optimizer=optimizer, epochs=1, progress=False, precision="32-true")) == 1
