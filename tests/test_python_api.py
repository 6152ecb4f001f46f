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
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    return {"student": student, "optimizer": torch.optim.Adam(student.parameters(), 0.01)}


def place_readme_paths(folder, dataset, cache):
    shutil.copytree(dataset, folder / "path/to/my-data")
    shutil.copytree(cache, folder / "cache/mine.zarr")


def test_readme_loop_learns_from_the_cache(tmp_path, monkeypatch, dataset, tiny_cache, own_model):
    place_readme_paths(tmp_path, dataset, tiny_cache)
    monkeypatch.chdir(tmp_path)
    before = own_model["student"][1].weight.detach().clone()
    exec(readme_loop(), own_model)  # noqa: S102  (our own README)
    assert not torch.equal(before, own_model["student"][1].weight)
    assert own_model["loss"].isfinite()


def test_readme_loop_is_stopped_when_the_pixels_are_others(
    tmp_path, monkeypatch, dataset, tiny_cache, own_model
):
    from kdscale.errors import ViewMismatchError

    place_readme_paths(tmp_path, dataset, tiny_cache)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ViewMismatchError, match="not the pixels"):
        exec(readme_loop().replace("(pixels, view,", "(255 - pixels, view,"), own_model)  # noqa: S102


def test_public_names_are_there():
    import kdscale

    for name in kdscale.__all__:
        assert getattr(kdscale, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kdscale.nothing
