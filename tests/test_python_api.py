"""The README's loop in a user's own hands."""

import re
import shutil
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def readme_loop():
    section = README.read_text().split("\n## From Python\n")[1]
    return re.search(r"```python\n(.*?)```", section, re.S).group(1)


@pytest.fixture
def own_model():
    torch.manual_seed(0)
    student, teacher = (
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)) for _ in range(2)
    )
    optimizer = torch.optim.Adam(student.parameters(), 0.01)
    return {"student": student, "teacher": teacher, "optimizer": optimizer}


def test_readme_loop_learns_from_its_cache(tmp_path, monkeypatch, dataset, own_model):
    shutil.copytree(dataset, tmp_path / "path/to/my-data")
    monkeypatch.chdir(tmp_path)
    before = own_model["student"][1].weight.detach().clone()
    exec(readme_loop(), own_model)  # noqa: S102  (our own README)
    assert not torch.equal(before, own_model["student"][1].weight)
    assert own_model["loss"].isfinite()


def test_readme_loop_is_stopped_when_the_images_are_others(
    tmp_path, monkeypatch, dataset, own_model, make_dataset
):
    from kdscale.errors import CacheMismatchError

    folder = tmp_path / "path/to/my-data"
    shutil.copytree(dataset, folder)
    monkeypatch.chdir(tmp_path)
    exec(readme_loop(), own_model)  # noqa: S102
    shutil.rmtree(folder)
    make_dataset(folder, seed=5)
    with pytest.raises(CacheMismatchError, match="fingerprint"):
        exec(readme_loop(), own_model)  # noqa: S102


def test_public_names_are_there():
    import kdscale

    for name in kdscale.__all__:
        assert getattr(kdscale, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kdscale.nothing
