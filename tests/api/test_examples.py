"""The examples run as they stand, offline, from an empty folder."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCS = EXAMPLES.parent / "docs"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


@pytest.fixture(autouse=True)
def _one_folder(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)


def test_cache_and_student_in_plain_pytorch(tmp_path):
    import cache_from_python

    assert cache_from_python.main(tmp_path) > 0.9


@pytest.mark.launch  # transformers takes ten seconds to import
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trainer_takes_the_first_step_of_kdscales_loop(tmp_path, monkeypatch):
    import hugging_face_trainer
    import toy

    import kdscale

    losses = []

    def recorded(self, *args, compute=hugging_face_trainer.Distillation.compute_loss, **kwargs):
        loss = compute(self, *args, **kwargs)
        losses.append(float(loss))
        return loss

    monkeypatch.setattr(hugging_face_trainer.Distillation, "compute_loss", recorded)
    logged = hugging_face_trainer.main(tmp_path, batch_size=256)  # all samples, in whatever order
    assert logged[-1] < logged[0]
    kdscale.distill(
        toy.model(8),
        toy.cached(tmp_path),
        toy.pictures(64, seed=1),
        train={"epochs": 1, "global_batch_size": 256, "log_every": 1},
        loss={"temperature": 2.0, "hard_weight": 0.0, "soft_weight": 1.0},
        run=tmp_path / "run",
    )
    with (tmp_path / "run" / "metrics.jsonl").open() as log:
        ours = json.loads(next(log))["loss"]
    assert losses[0] == pytest.approx(ours, rel=1e-6)


@pytest.mark.launch
@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    import lightning_trainer

    assert lightning_trainer.main(tmp_path) > 0.9


@pytest.mark.launch
@pytest.mark.filterwarnings("ignore")
def test_loop_of_timm(tmp_path):
    import timm_loop

    assert timm_loop.main(tmp_path) > 90


@pytest.mark.launch
@pytest.mark.parametrize("example", ["accelerate_loop", "torchrun_distill"])
def test_two_processes(example, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "--standalone", EXAMPLES / f"{example}.py"],
        cwd=tmp_path, env=os.environ | {"ACCELERATE_USE_CPU": "true"}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "top-1 100.0 %" in done.stdout
    if example == "accelerate_loop":
        assert "on 2 processes" in done.stdout
    else:
        result = json.loads((tmp_path / "toy/runs/student/result.json").read_text())
        assert result["num_processes"] == 2


@pytest.mark.launch
@pytest.mark.filterwarnings("ignore")
def test_notebook_runs_from_quickstart_to_report(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    paths = filter(None, [str(EXAMPLES.parent), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    commands = [str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(commands))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place)
    client.execute()
    assert "<html" in (tmp_path / "report.html").read_text()
    for name in ("labels", "teacher"):
        result = json.loads((tmp_path / "runs" / name / "result.json").read_text())
        assert result["top1_accuracy"] > 0.8


def test_notebook_is_stored_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    written = [cell for cell in cells if cell["cell_type"] == "code"]
    assert written
    assert not any(cell["outputs"] or cell["execution_count"] for cell in written)


def test_page_of_integrations_has_the_code_of_the_examples():
    path = DOCS / "site" / "example_code.py"
    spec = importlib.util.spec_from_file_location("example_code", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "integrations.md").read_text()
    assert page == module.with_code(page), "run: python docs/site/example_code.py"


def test_each_example_is_listed():
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    for page in (EXAMPLES / "README.md", DOCS / "integrations.md"):
        assert all(name in page.read_text() for name in names), page
