"""`kdscale env`: what a bug report needs, whatever is broken."""

import json
import sys
from importlib.metadata import version

import torch

import kdscale as package


def test_says_versions_extras_launch_variables_and_free_space(kdscale, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("KDSCALE_CACHE_ROOT", str(tmp_path / "not" / "there"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    done = kdscale("env", "--json")
    found = json.loads(done.stdout)
    assert found["kdscale"] == package.__version__
    assert found["packages"]["torch"] == version("torch")
    assert "timm" in found["extras"]["models"]
    assert "dev" not in found["extras"]
    assert found["launch"]["SLURM_ARRAY_TASK_ID"] == "3"
    assert found["torch"]["gpus"] == []
    assert found["cache_root"]["path"] == str(tmp_path / "not" / "there")
    assert found["cache_root"]["exists"] is False
    assert found["cache_root"]["free_bytes"] > 0
    assert "secret" not in done.stdout
    assert not (tmp_path / "not").exists()


def test_text_holds_the_same(kdscale):
    lines = kdscale("env").stdout.splitlines()
    assert f"kdscale: {package.__version__}" in lines
    assert f"  version: {torch.__version__}" in lines


def test_library_that_cannot_be_imported_is_stated(kdscale, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = json.loads(kdscale("env", "--json").stdout)
    assert found["torch"]["error"].startswith("ModuleNotFoundError")
