import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from kdscale.errors import StorageError, UnsafePathError, WeightsError
from kdscale.models.registry import create_model
from kdscale.models.weights import load_weights, read_metadata, save_weights, tensors_sha256

torch.set_num_threads(1)

SHARED_TEACHER = Path(__file__).parents[3] / "shared/models/cifar10-deepnn.safetensors"


def small(num_classes=10, hidden=8):
    return create_model(
        "mnist-mlp", num_classes=num_classes, in_channels=1, options={"hidden": hidden}
    )


@pytest.fixture
def saved(tmp_path):
    """A model and the file it was saved to."""
    model = small()
    path = tmp_path / "teacher.safetensors"
    save_weights(path, model, metadata={"model": "mnist-mlp"})
    return model, path


def equal(one, other):
    state, wanted = one.state_dict(), other.state_dict()
    return state.keys() == wanted.keys() and all(torch.equal(state[k], wanted[k]) for k in wanted)


# --------------------------------------------------------------------------- saving


def test_weights_round_trip_with_their_metadata(tmp_path):
    model = create_model("resnet20", num_classes=10, in_channels=3)
    model(torch.randn(4, 3, 32, 32))  # moves batch-norm's buffers
    metadata = {
        "model": "resnet20",
        "num_classes": 10,
        "class_names": ["Flugzeug", "Vögel"],
        "preprocess": {"mean": [0.5], "std": [0.25], "size": None},
        "metrics": {"top1_accuracy": 0.9125},
    }
    path = tmp_path / "new folder" / "teacher.safetensors"
    save_weights(path, model, metadata=metadata)
    other = create_model("resnet20", num_classes=10, in_channels=3)
    assert load_weights(path, other) == metadata
    assert read_metadata(path) == metadata
    assert equal(other, model)


def test_saving_writes_shared_and_strided_tensors_in_full(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    model.register_buffer("turned", torch.arange(12.0).view(3, 4).t())
    model.register_buffer("expanded", torch.ones(1).expand(5))
    model.register_buffer("part", torch.arange(9.0)[3:5])
    path = tmp_path / "tied.safetensors"
    save_weights(path, model, metadata={})
    tensors = safetensors.torch.load_file(path)
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[k], v) for k, v in model.state_dict().items())


def test_saving_replaces_a_file_and_leaves_nothing_beside_it(saved):
    _, path = saved
    other = small()
    save_weights(path, other, metadata={"epoch": 2})
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert read_metadata(path) == {"epoch": 2}


def test_saving_that_fails_keeps_the_old_file_and_no_rest(saved, monkeypatch):
    _, path = saved

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"cannot write .*No space left"):
        save_weights(path, small(), metadata={})
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_saving_below_a_file_is_a_storage_error(saved):
    model, path = saved
    with pytest.raises(StorageError, match="cannot write"):
        save_weights(path / "below.safetensors", model, metadata={})


def test_saving_a_model_with_extra_state_is_refused(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

    with pytest.raises(WeightsError, match="state holds _extra_state, wanted tensors alone"):
        save_weights(tmp_path / "x.safetensors", Extra(2, 2), metadata={})


# --------------------------------------------------------------------------- loading


def test_loading_renames_prefixes_the_longest_first(tmp_path):
    model = small()
    tensors = {"f.1.weight": "1.weight", "f.1.bias": "1.bias", "f.": "3."}
    old = {
        "f.1.weight": "1.weight",
        "f.1.bias": "1.bias",
        "f.weight": "3.weight",
        "f.bias": "3.bias",
    }
    state = model.state_dict()
    path = tmp_path / "old.safetensors"
    safetensors.torch.save_file({k: state[v] for k, v in old.items()}, path)
    other = small()
    load_weights(path, other, rename=tensors)
    assert equal(other, model)


def test_loading_refuses_prefixes_that_collide(saved):
    _, path = saved
    with pytest.raises(
        WeightsError, match=r"two tensors of .* are called 'x\.bias' after renaming"
    ):
        load_weights(path, small(), rename={"1.": "x.", "3.": "x."})


def test_loading_keeps_metadata_that_is_no_json_as_text(tmp_path):
    path = tmp_path / "x.safetensors"
    metadata = {"note": "by hand", "epochs": "18"}
    safetensors.torch.save_file(dict(small().state_dict()), path, metadata=metadata)
    assert load_weights(path, small()) == {"note": "by hand", "epochs": 18}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize(
    "nest",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {
            "checkpoint": 1,
            "model_state_dict": {f"module.{k}": v for k, v in state.items()},
        },
        lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
    ],
)
def test_loading_undoes_the_nests_of_torch_checkpoints(tmp_path, suffix, nest):
    model = small()
    path = tmp_path / f"checkpoint{suffix}"
    torch.save(nest(model.state_dict()), path)
    other = small()
    assert load_weights(path, other) == {}
    assert read_metadata(path) == {}
    assert equal(other, model)


class Nested(nn.Module):
    """A model whose own names begin with what a wrapper puts before others'."""

    def __init__(self, inside, outside=0):
        super().__init__()
        self.add_module(inside, small())
        if outside:
            self.extra = nn.Linear(outside, outside)


WRAPPERS = {
    "plain": lambda state: state,
    "DistributedDataParallel": lambda state: prefixed(state, "module."),
    "torch.compile": lambda state: prefixed(state, "_orig_mod."),
    "AveragedModel": lambda state: prefixed(state, "module.") | {"n_averaged": torch.tensor(9)},
    "AveragedModel of a compiled one": (
        lambda state: prefixed(state, "module._orig_mod.") | {"n_averaged": torch.tensor(9)}
    ),
    "Lightning": lambda state: {"state_dict": prefixed(state, "model."), "epoch": 3},
    "Lightning with net": lambda state: {"state_dict": prefixed(state, "net.")},
    "Lightning of a parallel one": lambda state: {"state_dict": prefixed(state, "model.module.")},
}


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("own", [None, "module", "model", "net", "_orig_mod"])
def test_prefixes_of_wrappers_are_undone_and_those_of_the_model_are_not(tmp_path, wrapper, own):
    def create():
        return small() if own is None else Nested(own, outside=2)

    model, other = create(), create()
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(WRAPPERS[wrapper](model.state_dict()), path)
    load_weights(path, other)
    assert equal(other, model)


def test_what_lies_beside_a_wrapped_model_is_left_out_and_named(tmp_path, caplog):
    model, other = small(), small()
    beside = {"criterion.weight": torch.ones(10), "teacher.fc.weight": torch.ones(2)}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": prefixed(model.state_dict(), "model.") | beside}, path)
    load_weights(path, other)
    assert equal(other, model)
    assert "2 tensors beside 'model.' left out: criterion.weight, teacher.fc.weight" in caplog.text


def test_what_lies_beside_a_model_without_a_wrapper_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(small().state_dict() | {"more.weight": torch.ones(2)}, path)
    refused(path, small(), r"missing nothing; unexpected more\.weight")


def test_names_of_a_wrapped_model_that_does_not_fit_are_reported_without_the_prefix(tmp_path):
    state = prefixed(small().state_dict(), "module.")
    del state["module.3.bias"]
    path = tmp_path / "x.pt"
    torch.save(state, path)
    refused(path, small(), r"missing 3\.bias; unexpected nothing")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt", ".tar", ""])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "pickle"])
def test_files_are_read_by_their_content_whatever_their_suffix(tmp_path, suffix, kind):
    model, other = small(), small()
    path = tmp_path / f"weights{suffix}"
    if kind == "safetensors":
        save_weights(path, model, metadata={"a": 1})
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    assert load_weights(path, other) == ({"a": 1} if kind == "safetensors" else {})
    assert equal(other, model)


def test_header_of_any_length_is_safetensors(tmp_path):
    model, other = small(), small()
    for length in range(0, 256, 8):  # one of the headers begins as a pickle does
        path = tmp_path / "x.safetensors"
        save_weights(path, model, metadata={"note": "x" * length})
        assert read_metadata(path) == {"note": "x" * length}
        load_weights(path, other)
    assert equal(other, model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: (tensor * 100).to(torch.int8), r"integer values \(int8\) in 1\.weight, "),
        (lambda tensor: tensor > 0, r"boolean values \(bool\)"),
        (lambda tensor: tensor.to(torch.complex64), r"complex values"),
        (lambda tensor: tensor.to_sparse(), "sparse, quantised or absent values"),
    ],
)
def test_other_kinds_of_numbers_are_refused(tmp_path, change, said):
    path = tmp_path / "x.pt"
    state = small().state_dict()
    torch.save(state | {"1.weight": change(state["1.weight"])}, path)
    refused(path, small(), rf"hold {said}.*wanted real \(float32\)")


def test_loading_fills_in_the_batch_counter_that_old_files_lack(tmp_path):
    model = create_model("resnet20", num_classes=10, in_channels=3)
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    path = tmp_path / "old.pt"
    torch.save(state, path)
    other = create_model("resnet20", num_classes=10, in_channels=3)
    load_weights(path, other)
    assert equal(other, model)


def test_loading_converts_to_the_dtype_of_the_model(tmp_path):
    model = small()
    path = tmp_path / "half.safetensors"
    safetensors.torch.save_file({k: v.half() for k, v in model.state_dict().items()}, path)
    other = small()
    load_weights(path, other)
    assert other[1].weight.dtype == torch.float32
    assert torch.equal(other[1].weight, model[1].weight.half().float())


def refused(path, model, message, **arguments):
    """Loading raises, and the model is as it was."""
    before = tensors_sha256(model)
    with pytest.raises(WeightsError, match=message) as error:
        load_weights(path, model, **arguments)
    assert tensors_sha256(model) == before
    return str(error.value)


def test_missing_file_is_reported(tmp_path):
    refused(tmp_path / "no.safetensors", small(), r"no weights file .*no\.safetensors")
    with pytest.raises(WeightsError, match="no weights file"):
        read_metadata(tmp_path / "no.safetensors")


POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth.tar", "w.ckpt", "weights"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (POINTER, "is a Git LFS pointer, .*git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>" * 9, r"is a web page .*download it again"),
        (b"<html>404</html>", r"is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        (b"\x1f\x8b\x08" + bytes(40), "archive: unpack it"),
        (bytes(257) + b"ustar" + bytes(250), "archive: unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
    ],
)
def test_what_lies_in_the_place_of_weights_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, small(), message)
    with pytest.raises(WeightsError, match=message):
        read_metadata(path)


def test_pipe_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(UnsafePathError, match="is a pipe"):
        load_weights(tmp_path / "w.safetensors", small())


@pytest.mark.parametrize("keep", [4, 60, -1])
def test_truncated_safetensors_file_is_reported(saved, keep):
    _, path = saved
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, small(), r"bytes\) is damaged or not a \.safetensors file: .+: copy or download")
    with pytest.raises(WeightsError, match="is damaged"):
        read_metadata(path)


def test_garbage_safetensors_file_is_reported(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no weights" * 100)
    refused(path, small(), "is damaged")


@pytest.mark.parametrize("keep", [1, 100, -100])
def test_truncated_checkpoint_is_reported(tmp_path, keep):
    path = tmp_path / "x.pt"
    torch.save(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, small(), r"is damaged or not a (\.pt|weights) file")


@pytest.mark.parametrize("content", [b"AAAA" * 50, bytes(64)])
def test_garbage_checkpoint_is_reported(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    refused(path, small(), "is damaged")


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path, legacy):
    path = tmp_path / "x.pt"
    mark = tmp_path / "mark"
    content = {"state_dict": small().state_dict(), "extra": Touch(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    message = refused(path, small(), "is refused: opening it would run code")
    assert "convert it to safetensors where you trust it: python -c" in message
    assert not mark.exists()


def test_refusal_names_what_the_checkpoint_wants(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": small().state_dict(), "args": argparse.Namespace(lr=0.1)}, path)
    refused(path, small(), r"would run code \(it wants argparse.Namespace\)")


# Making such an archive is deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_archive_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.jit.save(torch.jit.trace(small(), torch.zeros(1, 1, 28, 28)), path)
    message = refused(path, small(), "is a TorchScript archive, .* would run code")
    command = shlex.split(message.partition("made from: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    load_weights(path.with_suffix(".safetensors"), small())


@pytest.mark.thorough
def test_command_of_the_refusal_converts_the_file(tmp_path):
    model = small()
    path = tmp_path / "a checkpoint.pt"
    torch.save({"model": model.state_dict(), "args": argparse.Namespace(lr=0.1)}, path)
    message = refused(path, small(), "would run code")
    command = shlex.split(message.partition("trust it: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    other = small()
    load_weights(path.with_suffix(".safetensors"), other)
    assert equal(other, model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds a list, wanted a state_dict"),
        ({"epoch": 3, "weight": torch.zeros(2)}, r"holds epoch \(1 entries\) beside tensors"),
    ],
)
def test_checkpoint_without_a_state_dict_is_reported(tmp_path, content, message):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    refused(path, small(), message)


def test_weights_of_another_model_are_reported_by_name(saved):
    _, path = saved
    model = create_model("cifar10-deepnn", num_classes=10, in_channels=3)
    refused(
        path,
        model,
        r"not of this student: missing classifier.0.bias, classifier.0.weight, classifier.3.bias "
        r"and 9 more; unexpected 1.bias, 1.weight, 3.bias and 1 more: .*rename",
        what="student",
    )


def test_file_that_lacks_a_tensor_is_reported(tmp_path):
    state = small().state_dict()
    del state["3.bias"]
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(dict(state), path)
    refused(path, small(), r"missing 3\.bias; unexpected nothing")


def test_head_of_other_classes_is_reported_as_such(tmp_path):
    path = tmp_path / "x.safetensors"
    save_weights(path, small(num_classes=100), metadata={})
    message = "^teacher weights have a head for 100 classes, the data set has 10 "
    refused(path, small(), message)


def test_other_shapes_are_reported_with_got_and_wanted(tmp_path):
    path = tmp_path / "x.safetensors"
    save_weights(path, small(hidden=16), metadata={})
    refused(
        path,
        small(),
        r"other shapes than this teacher: 1.weight got \[16, 784\], wanted \[8, 784\]",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_reported(tmp_path, value):
    model = small()
    with torch.no_grad():
        model[3].weight[2, 1] = value
    path = tmp_path / "x.safetensors"
    save_weights(path, model, metadata={})
    refused(path, small(), r"hold NaN or infinity in 3\.weight")


# --------------------------------------------------------------------------- identity


def test_sha256_is_equal_for_any_file_format_and_memory_format(tmp_path):
    model = create_model("resnet20", num_classes=10, in_channels=3)
    expected = tensors_sha256(model)
    save_weights(tmp_path / "x.safetensors", model, metadata={"a": 1})
    torch.save({"model": model.state_dict()}, tmp_path / "x.pt")
    for file in ("x.safetensors", "x.pt"):
        other = create_model("resnet20", num_classes=10, in_channels=3)
        assert tensors_sha256(other) != expected
        load_weights(tmp_path / file, other)
        assert tensors_sha256(other) == expected
        assert tensors_sha256(other.to(memory_format=torch.channels_last)) == expected


def test_sha256_changes_with_any_bit():
    model = small()
    before = tensors_sha256(model)
    bits = model[3].bias.data.view(torch.int32)
    bits[4] ^= 1
    assert tensors_sha256(model) != before
    bits[4] ^= 1
    assert tensors_sha256(model) == before


def test_sha256_tells_names_shapes_and_dtypes_apart():
    def of(name, tensor):
        model = nn.Module()
        model.register_buffer(name, tensor)
        return tensors_sha256(model)

    zeros = torch.zeros(2, 3)
    hashes = [
        of("a", zeros),
        of("b", zeros),
        of("a", zeros.view(3, 2)),
        of("a", zeros.to(torch.int32)),
        of("a", torch.zeros(6, 2, dtype=torch.bfloat16)),
        of("a", torch.tensor(0.0)),
        of("a", torch.zeros(0)),
    ]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.shared
def test_shared_teacher_loads_with_its_prefixes_renamed():
    model = create_model("cifar10-deepnn", num_classes=10, in_channels=3)
    metadata = load_weights(SHARED_TEACHER, model, rename={"f.": "features.", "c.": "classifier."})
    assert metadata == {"epochs": 18, "test_accuracy": 0.8185}
    renamed = safetensors.torch.load_file(SHARED_TEACHER)
    assert torch.equal(model.features[7].weight, renamed["f.7.weight"])
    assert torch.equal(model.classifier[3].bias, renamed["c.3.bias"])
