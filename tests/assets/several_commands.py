"""Started by `launch/cpu.sh`: runs kdscale commands one after another in the same processes.

The only argument is a JSON file: a list of argument lists. Each process notes which samples it has
trained on, [run, step, sample, ...] a line, in `shown-PROCESS.jsonl`.
"""

# ruff: noqa: E402  (threads are counted before anything starts some)

import json
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

from kdscale.cli import cli
from kdscale.data.loader import BatchLoader
from kdscale.distributed import create_accelerator

accelerator = create_accelerator()
assert accelerator.num_processes == 2
shown = Path(f"shown-{accelerator.process_index}.jsonl")
run = ""
batch = BatchLoader.batch


def noted(loader, step):
    found = batch(loader, step)
    with shown.open("a") as lines:
        lines.write(json.dumps([run, step, *found.index.tolist()]) + "\n")
    return found


BatchLoader.batch = noted
for arguments in json.loads(Path(sys.argv[1]).read_text()):
    run = arguments[arguments.index("--run") + 1] if "--run" in arguments else ""
    cli(arguments, prog_name="kdscale", standalone_mode=False)
accelerator.end_training()
