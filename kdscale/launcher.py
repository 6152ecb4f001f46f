"""Check that a launch is what it seems, with no setting that kdscale would not follow."""

import os

from kdscale.errors import LaunchError

_OF_A_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables by which torch's processes find each other."""
_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
_WANTED = (
    "wanted what a launcher sets for each process. For one process: unset RANK LOCAL_RANK "
    "WORLD_SIZE; for several see launch/README.md"
)

_WHOLE_MODELS = (
    "each process trains the whole model (DistributedDataParallel), and checkpoints contain it "
    "under its own names: launch with distributed_type MULTI_GPU, as launch/multi_gpu.yaml does"
)
_UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": ("FSDP", f"it splits a model over processes; {_WHOLE_MODELS}"),
    "ACCELERATE_USE_DEEPSPEED": (
        "DeepSpeed", f"it brings its own optimizer and loss scale, which could not be resumed "
        f"exactly; {_WHOLE_MODELS}",
    ),
    "ACCELERATE_USE_MEGATRON_LM": (
        "Megatron-LM", f"it splits language models over processes; {_WHOLE_MODELS}",
    ),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "a parallelism_config", f"it splits a model or a sample over processes; {_WHOLE_MODELS}",
    ),
    "ACCELERATE_USE_SAGEMAKER": (
        "Accelerate's SageMaker launcher",
        "start `accelerate launch --config_file launch/multi_gpu.yaml` in the container",
    ),
}  # fmt: skip
"""Environment variables of `accelerate launch`: what they turn on, and why it is refused."""
_RECIPE_DECIDES = {
    "ACCELERATE_MIXED_PRECISION": (
        "--mixed_precision", "no",
        "precision of [student.train], [teacher.train] or [teacher]",
    ),
    "ACCELERATE_DYNAMO_BACKEND": (
        "--dynamo_backend", "no", "compile of [student.train], [teacher.train] or [teacher]",
    ),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        "--gradient_accumulation_steps", "1", "accumulation of [student.train] or [teacher.train]",
    ),
    "ACCELERATE_GRADIENT_CLIPPING": (
        "--gradient_clipping", "none", "gradient_clip of [student.train] or [teacher.train]",
    ),
}  # fmt: skip
"""Environment variables of `accelerate launch`: flag, neutral value, field of the recipe."""


def check_environment() -> None:
    """Stop where the environment contains half a launch, or one that the recipe contradicts.

    Raises:
        LaunchError: RANK or LOCAL_RANK is set without the rest, a value is no such number, or the
            launcher turns on what kdscale does not support or the recipe decides.
    """
    given = {name: os.environ[name] for name in _OF_A_LAUNCH if name in os.environ}
    named = [name for name in ("RANK", "LOCAL_RANK") if given.get(name, "-1") != "-1"]
    for name in _NUMBERS:
        if not given.get(name, "0").removeprefix("-").isdecimal():
            raise LaunchError(f"{name} is {given[name][:80]!r} in the environment, {_WANTED}")
    if missing := [name for name in _OF_A_LAUNCH if named and name not in given]:
        raise LaunchError(
            f"{' and '.join(named)} is set in the environment, but not {', '.join(missing)}: "
            f"{_WANTED}"
        )
    if named and not 0 <= int(given["RANK"]) < int(given["WORLD_SIZE"]):
        raise LaunchError(
            f"RANK is {given['RANK']} of {given['WORLD_SIZE']} processes (WORLD_SIZE), {_WANTED}"
        )
    _check_launcher()


def _check_launcher() -> None:
    """Stop where Accelerate's launcher turns on what would not happen, or not as it seems."""
    for name, (what, why) in _UNSUPPORTED.items():
        if os.environ.get(name, "false").lower() in ("true", "1"):
            raise LaunchError(f"kdscale does not support {what} ({name}): {why}")
    for name, (flag, neutral, field) in _RECIPE_DECIDES.items():
        value = os.environ.get(name, neutral)
        if value.lower() != neutral:
            raise LaunchError(
                f"the launcher sets {flag} {value[:80]} ({name}), which the recipe decides: set "
                f"{field} there, and launch with {flag} {neutral}"
            )


def check_world_size(seen: int) -> None:
    """Stop where processes would work side by side without knowing of each other.

    Args:
        seen: processes that Accelerate sees.

    Raises:
        LaunchError: the launcher has started more, or was to start more.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != seen:
        raise LaunchError(
            f"{started} processes were started, Accelerate sees {seen}: each would do all the "
            "work. On a CPU use launch/cpu.sh; see launch/README.md"
        )
    by_accelerate = "ACCELERATE_USE_CPU" in os.environ and "ACCELERATE_DYNAMO_MODE" in os.environ
    if by_accelerate and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise LaunchError(
            "the launcher set MASTER_ADDR, as for several processes, but started one, as it does "
            "with --cpu and with distributed_type: MULTI_CPU. On a CPU use launch/cpu.sh; see "
            "launch/README.md. For one process: unset MASTER_ADDR"
        )


def choose_device(name: str) -> None:
    """Let this process, and those that it starts, run models on a device.

    Must be called before torch uses a GPU.

    Args:
        name: `cpu`, `cuda`, `cuda:N` (GPU N of those that are visible) or `mps`.

    Raises:
        LaunchError: one GPU is named for several processes, or there is no such GPU.
    """
    kind, _, index = name.partition(":")
    os.environ[_DEVICE] = kind
    if index and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LaunchError(
            f"--device {name} names one GPU for {os.environ['WORLD_SIZE']} processes: leave it "
            "out; each process uses its own"
        )
    if kind == "cpu" or "ACCELERATE_USE_CPU" in os.environ:
        os.environ["ACCELERATE_USE_CPU"] = str(kind == "cpu").lower()
    if kind == "mps":
        os.environ["ACCELERATE_TORCH_DEVICE"] = kind
    if index:  # as the only visible one, it is the current one of all libraries
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else []
        if visible is not None and int(index) >= len(gpus):
            raise LaunchError(
                f"--device {name}: {len(gpus)} GPUs are visible (CUDA_VISIBLE_DEVICES), counted "
                "from 0: name another one"
            )
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(index)] if gpus else index


_DEVICE = "KDSCALE_DEVICE"


def check_device(device_type: str) -> None:
    """Stop on a device that was not chosen, or that kdscale has no code for.

    Raises:
        LaunchError: the chosen device is not there, or it is a TPU.
    """
    chosen = os.environ.get(_DEVICE, device_type)
    if chosen != device_type:
        raise LaunchError(
            f"--device {chosen}: torch finds none on this machine, only {device_type}; see "
            "`kdscale env`"
        )
    if device_type == "xla":
        raise LaunchError(
            "kdscale does not support TPUs (device xla): its views and targets are computed by "
            "PyTorch's own kernels, step by step. Use CUDA GPUs or a CPU (ACCELERATE_USE_CPU=true)"
        )
