import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `synthetic`

import synthetic


@pytest.fixture
def cache(tmp_path):
    """A finished cache of 2 views in 3 shards each."""
    synthetic.build(tmp_path / "tiny.zarr")
    return tmp_path / "tiny.zarr"
