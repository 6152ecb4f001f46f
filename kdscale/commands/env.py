"""Facts about a machine for a bug report: versions, GPUs, launch, and room for caches."""

import os
import platform
import shutil
import sys
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from kdscale.version import __version__

_EXTRA_OF_DEVELOPERS = "dev"
_READ_BY_LIBRARIES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_HOME",
)
"""Environment variables that change what the libraries do; those with secrets are not here."""
_OF_LAUNCHES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
_LAUNCH_PREFIXES = ("ACCELERATE_", "SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_ARRAY_")


def environment(cache_root: Path) -> dict[str, Any]:
    """Describe this machine and installation, as one object of a bug report.

    Nothing is written, no network is used, and a library that cannot be imported is stated, since
    that may be the fault.

    Args:
        cache_root: folder of caches and decoded images; it need not exist.

    Returns:
        `kdscale`, `python`, `platform`, `cpu` and `torch`, `packages` (version by name, None where
        it is not installed), `extras` (the same by extra), `launch` and `variables` (environment
        variables by name), `cache_root` (path, whether it exists, bytes free on its disk).
    """
    packages, extras = _requirements()
    return {
        "kdscale": __version__,
        "installed_at": str(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu": {"cores": os.cpu_count(), "memory_bytes": psutil.virtual_memory().total},
        "torch": _torch(),
        "packages": packages,
        "extras": extras,
        "launch": _variables(_OF_LAUNCHES, _LAUNCH_PREFIXES),
        "variables": _variables(_READ_BY_LIBRARIES, ("KDSCALE_",)),
        "cache_root": _cache_root(cache_root),
    }


def _torch() -> dict[str, Any]:
    """Return torch's version and devices, or the error of its import."""
    try:
        import torch

        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "threads": torch.get_num_threads(),
            "gpus": [
                {
                    "name": gpu.name,
                    "memory_bytes": gpu.total_memory,
                    "compute_capability": f"{gpu.major}.{gpu.minor}",
                }
                for gpu in gpus
            ],
        }
    except Exception as error:  # whatever it is, it is what the report is about
        return {"error": f"{type(error).__name__}: {error}"}


def _requirements() -> tuple[dict[str, str | None], dict[str, dict[str, str | None]]]:
    """Versions of what kdscale needs, and of what each extra adds."""
    packages: dict[str, str | None] = {}
    extras: dict[str, dict[str, str | None]] = {}
    for line in requires("kdscale") or ():
        requirement = Requirement(line)
        extra = _extra_of(requirement)
        if requirement.name == "kdscale" or extra == _EXTRA_OF_DEVELOPERS:
            continue
        group = packages if extra is None else extras.setdefault(extra, {})
        group[requirement.name] = _version(requirement.name)
    return packages, extras


def _extra_of(requirement: Requirement) -> str | None:
    """The extra that a requirement belongs to; None where kdscale always needs it."""
    if requirement.marker is None or "extra" not in str(requirement.marker):
        return None
    return str(requirement.marker).rpartition("extra ==")[2].strip(" \"'")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _variables(names: Collection[str], prefixes: tuple[str, ...]) -> dict[str, str]:
    """Environment variables that are set, by name."""
    found = os.environ.items()
    return {name: one for name, one in sorted(found) if name in names or name.startswith(prefixes)}


def _cache_root(folder: Path) -> dict[str, Any]:
    """Return the folder of caches, and the room on its disk."""
    exists, standing = folder.is_dir(), folder.absolute()
    while not standing.exists():
        standing = standing.parent
    return {
        "path": str(folder.absolute()),
        "exists": exists,
        "free_bytes": shutil.disk_usage(standing).free,
    }
