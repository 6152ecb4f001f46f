"""The examples run as they stand, offline."""

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _one_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    monkeypatch.chdir(tmp_path)


def test_cache_and_student_in_plain_pytorch():
    import cache_from_python

    assert cache_from_python.main() > 0.9


@pytest.mark.launch  # transformers takes ten seconds to import
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trainer():
    import hugging_face_trainer

    losses = hugging_face_trainer.main()
    assert len(losses) == 8
    assert losses[-1] < losses[0]
