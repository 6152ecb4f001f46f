"""A compiled model gives what the model gives, features too; other batch sizes run eagerly."""

import pytest
import torch
from torch import nn

from kdscale.compilation import CompiledModel, compile_errors
from kdscale.errors import ModelError
from kdscale.losses.objective import FeatureTerm
from kdscale.training.feature_student import with_features


@pytest.mark.slow
def test_features_of_a_compiled_student_are_those_of_the_student_with_gradients():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    terms = [FeatureTerm("hint", "2", "t", {})]
    model = with_features(student, terms, torch.randn(2, 3, 2, 2), {"t": (5,)}, 0).train()
    compiled, names = CompiledModel(model, True, batch_size=4, what="student.train"), []
    for _ in range(2):
        pixels = torch.randn(4, 3, 2, 2)
        logits, (features,) = compiled(pixels)
        expected, (seen,) = model(pixels)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(features, seen)
        model.zero_grad()
        (logits.sum() + features.sum()).backward()
        names = [name for name, one in model.named_parameters() if one.grad is not None]
    assert names == [name for name, _ in model.named_parameters()]
    assert not any("_orig_mod" in name for name in model.state_dict())


def test_batches_of_other_sizes_run_uncompiled(monkeypatch):
    sizes = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: lambda x: sizes.append(len(x)) or x)
    compiled = CompiledModel(nn.Identity(), True, batch_size=4, what="student.train")
    for size in (4, 3, 1, 4, 8):
        assert len(compiled(torch.zeros(size, 2))) == size
    assert sizes == [4, 4]


def test_errors_of_the_compiler_name_the_remedy_and_others_pass():
    from torch._dynamo.exc import Unsupported

    with (
        pytest.raises(
            ModelError,
            match=r"student\.train\.compile: torch cannot .* or set student\.train\.compile = fa",
        ),
        compile_errors("student.train"),
    ):
        raise Unsupported("no such thing")
    with pytest.raises(RuntimeError, match="shapes"), compile_errors("student.train"):
        raise RuntimeError("shapes do not fit")
    with pytest.raises(torch.OutOfMemoryError), compile_errors("student.train"):
        raise torch.OutOfMemoryError("full")
