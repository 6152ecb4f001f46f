"""Started by `launch/cpu.sh`: runs kdscale commands one after another in the same processes.

The only argument is a JSON file: a list of argument lists.
"""

# ruff: noqa: E402  (threads are counted before anything starts some)

import json
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

from kdscale.cli import cli
from kdscale.engine.processes import create_accelerator

assert create_accelerator().num_processes == 2
for arguments in json.loads(Path(sys.argv[1]).read_text()):
    cli(arguments, prog_name="kdscale", standalone_mode=False)
create_accelerator().end_training()
