"""Every bit of a run's folder and of decoded images decides nothing, or is noticed when it flips.

Each test flips bits at random places and calls the readers that commands use: the values are those
of the undamaged files, or a `KdscaleError` is raised, or a warning names the file.
"""

import logging
import random
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdscale.commands.evaluate import Evaluation
from kdscale.commands.train import train
from kdscale.data import decoded_folder
from kdscale.data.encoded_images import read_note, write_note
from kdscale.data.headers import Headers
from kdscale.data.image_dataset import load_images
from kdscale.data.image_hashes import read_keys, write_keys
from kdscale.data.loader import ResidentPixels
from kdscale.data.pixel_sources import as_tensor
from kdscale.data.views.pipeline import Pipeline
from kdscale.documents import DAMAGE, write_object
from kdscale.errors import KdscaleError
from kdscale.evaluation import teacher_predictions
from kdscale.experiment import Experiment, Locations
from kdscale.experiment.pretrained_init import PretrainedInit
from kdscale.experiment.pretrained_init import _read_note as read_note_of_beginning
from kdscale.experiment.saved_runs import read_recipe
from kdscale.experiment.trained_models import Trust, trained_model_of
from kdscale.models.checkpoints import read_tensors
from kdscale.models.weights import read_metadata
from kdscale.runs import checkpoint
from kdscale.runs.folder import RunFolder, read_run_file
from kdscale.runs.log import read_sound_metrics
from kdscale.runs.run_spec import RunSpec
from kdscale.training.optim import create_optimizer
from kdscale.training.resume import _loop_state
from kdscale.training.trainer import TrainerState

FLIPS = 40  # of each file


def small_model(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    return model, create_optimizer("adam", model.parameters(), learning_rate=0.1)


def write_checkpoint(folder, step):
    model, optimizer = small_model(step)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    checkpoint.write_process_state(folder, 0)
    checkpoint.write_shared_state(folder, model, optimizer, TrainerState(step=step).to_json())
    checkpoint.publish(folder, step)


def restored(folder):
    """All that a training would go on from, by step."""
    model, optimizer = small_model(99)
    path = checkpoint.newest_sound(folder)
    checkpoint.restore(path, model, optimizer, 0, 1)
    values = [*model.state_dict().values()]
    for parameter in model.parameters():  # files keep no order
        state = optimizer.state[parameter]
        values += [state[name] for name in sorted(state)]
    values.append(torch.randn(3))  # the generator goes on, too
    numbers = [torch.as_tensor(one).tolist() for one in values]
    return [path.name, _loop_state(path), optimizer.param_groups[0]["lr"], numbers]


@contextmanager
def flipped(path, where, first=None):
    """One bit of a file, or of its first bytes, is another one for the block."""
    whole = path.read_bytes()
    place = where.randrange(min(len(whole), first or len(whole)))
    damaged = bytearray(whole)
    damaged[place] ^= 1 << where.randrange(8)
    path.write_bytes(damaged)
    yield
    path.write_bytes(whole)


def outcome(read, caplog):
    """What a reader gives: its value, and whether it was refused or a warning was logged."""
    caplog.clear()
    try:
        value = read()
    except KdscaleError:
        return None, True
    return value, bool([one for one in caplog.records if one.levelno >= logging.WARNING])


def assert_flips_are_noticed(path, read, caplog, first=None):
    where = random.Random(path.name)
    with caplog.at_level(logging.WARNING):
        sound, told = outcome(read, caplog)
        assert not told, caplog.text
        for _ in range(FLIPS):
            with flipped(path, where, first):
                value, told = outcome(read, caplog)
            assert told or value == sound, path


@pytest.fixture(scope="module")
def run(tmp_path_factory, load_table, shared_root):
    """A finished run with best weights and an evaluation."""
    folder = tmp_path_factory.mktemp("flips") / "run"
    recipe = load_table(data={"validation": 0.25}, student={"train": {"epochs": 2}})
    train(
        Experiment(recipe, Locations(run=folder, cache_root=shared_root)),
        RunSpec("student", "none", 0),
    )
    Evaluation(shared_root, seconds=0).model(trained_model_of(folder, trust=Trust(code=True)))
    return folder


def weights(path):
    tensors, _ = read_tensors(path)
    return read_metadata(path), {name: one.tolist() for name, one in tensors.items()}


def evaluation(path):
    try:
        return read_run_file(path)
    except DAMAGE as error:  # what callers make a message of
        raise KdscaleError(str(error)) from error


def metrics(run):
    records, damaged = read_sound_metrics(run)
    for problem in damaged:  # what callers log, or put into the report
        logging.getLogger("kdscale").warning(problem)
    return records


READERS = {
    "run.json": lambda run: RunFolder(run).read_job(),
    "content.json": lambda run: RunFolder(run).read_content(),
    "result.json": lambda run: RunFolder(run).read_result(),
    "recipe.toml": read_recipe,
    "evaluation.json": lambda run: evaluation(RunFolder(run).evaluation_file()),
    "weights.safetensors": lambda run: weights(RunFolder(run).weights_file()),
    "best.safetensors": lambda run: weights(RunFolder(run).weights_file("best")),
    "metrics.jsonl": metrics,
}
"""Of each file of a run's folder, what commands take from it."""


@pytest.mark.parametrize("file", READERS)
def test_flip_in_a_runs_file_changes_nothing_or_is_reported(run, caplog, file):
    assert_flips_are_noticed(run / file, lambda: READERS[file](run), caplog)


def test_flip_in_what_a_run_began_from_changes_nothing_or_is_reported(tmp_path, caplog):
    path = tmp_path / "pretrained.json"
    write_object(path, PretrainedInit("weights.pth", "0" * 64).to_json())
    assert_flips_are_noticed(path, lambda: read_note_of_beginning(path), caplog)


def test_flipped_bit_in_a_teachers_predictions_has_them_computed_again(tmp_path, caplog):
    accelerator, answers = SimpleNamespace(is_main_process=True), torch.arange(7)
    teacher = SimpleNamespace(describe=dict)
    images = SimpleNamespace(fingerprint="0" * 64, clean=())
    teacher_predictions.store_predictions(teacher, images, tmp_path, answers, accelerator)
    (path,) = (tmp_path / "predictions").iterdir()

    def read():
        found = teacher_predictions._read(path, len(answers))
        return None if found is None else found.tolist()

    assert read() == answers.tolist()
    assert_flips_are_noticed(path, read, caplog)


def test_predictions_under_another_key_are_computed_again(tmp_path, caplog):
    path, other = tmp_path / "predictions" / "key.npy", tmp_path / "predictions" / "other.npy"
    teacher_predictions._write(path, torch.arange(7), tmp_path)
    path.rename(other)
    assert teacher_predictions._read(other, 7) is None
    assert "of another teacher or other images" in caplog.text


def test_flip_in_notes_of_encoded_images_reads_their_headers_again(tmp_path, caplog):
    path, headers = tmp_path / "key.json", Headers(3, False, ((8, 9), (10, 12)))
    write_note(path, headers)
    assert read_note(path) == headers
    assert_flips_are_noticed(path, lambda: read_note(path), caplog)
    write_keys(path, np.arange(5, dtype=np.uint64))
    (keys,) = tmp_path.glob("*.keys")
    where = random.Random(0)
    for _ in range(FLIPS):
        with flipped(keys, where):
            assert read_keys(path, 5) is None  # computed anew


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "state.json", "random-0.json"]
)
def test_flip_in_a_checkpoint_goes_on_from_the_one_before(tmp_path, caplog, file):
    saved = tmp_path / "saved"
    for step in (5, 6):
        write_checkpoint(saved, step)
    shutil.copytree(saved, tmp_path / "folder")
    newest = restored(tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder" / "step-00000006")
    before = restored(tmp_path / "folder")
    where = random.Random(file)
    for _ in range(FLIPS):
        shutil.rmtree(tmp_path / "folder")
        shutil.copytree(saved, tmp_path / "folder")
        caplog.clear()
        path = tmp_path / "folder" / "step-00000006" / file
        data = bytearray(path.read_bytes())
        data[where.randrange(len(data))] ^= 1 << where.randrange(8)
        path.write_bytes(data)
        found = restored(tmp_path / "folder")
        if found != newest:
            assert found == before
            assert "step-00000006 cannot be used" in caplog.text
            assert "going on from the one before it, step-00000005" in caplog.text


@pytest.fixture(scope="module")
def store(tmp_path_factory, dataset):
    """A folder of decoded images."""
    root = tmp_path_factory.mktemp("store")
    load_images(str(dataset), split="train", root=root)
    (folder,) = (path for path in (root / "images").iterdir() if path.is_dir())
    return folder


def opened(folder):
    """Pixels and labels as batches take them; `KdscaleError` where they would be decoded again."""
    try:
        stored = decoded_folder.open_folder(folder)
    except decoded_folder.DamagedError as error:
        raise KdscaleError(str(error)) from error
    pixels, views = ResidentPixels(as_tensor(stored.pixels), stored.row_check), Pipeline(())
    plan = views.plan(0, torch.arange(len(stored.labels)))[0]
    found, _ = pixels.prefetch(views, plan.images)()
    return found.tolist(), stored.labels.tolist(), stored.fingerprint


@pytest.mark.parametrize("limit", [1 << 29, 0], ids=["hashed at opening", "checked by sample"])
@pytest.mark.parametrize("file", ["pixels.npy", "labels.npy", "keys.npy", "images.json"])
def test_flip_in_decoded_images_is_decoded_again_or_reported(
    store, caplog, monkeypatch, file, limit
):
    monkeypatch.setattr(decoded_folder, "VERIFIED_BYTES", limit)
    assert_flips_are_noticed(store / file, lambda: opened(store), caplog)
    assert_flips_are_noticed(store / file, lambda: opened(store), caplog, first=128)


def test_large_store_is_hashed_at_opening_where_keys_are_missing(store, caplog, monkeypatch):
    monkeypatch.setattr(decoded_folder, "VERIFIED_BYTES", 0)
    keys = (store / "keys.npy").read_bytes()
    (store / "keys.npy").unlink()
    assert_flips_are_noticed(store / "pixels.npy", lambda: opened(store), caplog)
    (store / "keys.npy").write_bytes(keys)


def test_sample_that_was_damaged_after_opening_ends_training_in_one_message(
    kdscale, write_recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(decoded_folder, "VERIFIED_BYTES", 0)
    recipe = write_recipe()
    assert kdscale("train", recipe, "--run", "first").exit_code == 0
    for pixels in (tmp_path / "cache" / "images").glob("*/pixels.npy"):
        data = bytearray(pixels.read_bytes())
        data[-1] ^= 1
        pixels.write_bytes(data)
    done = kdscale("train", recipe, "--run", "second")
    assert done.exit_code == 1
    assert "Error: the decoded images in " in done.stderr
    assert "(numbers 127); remove that folder, and the images are decoded again" in done.stderr
