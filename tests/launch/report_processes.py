"""Started by the launchers under test: each process writes what it believes about itself."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

accelerator = Accelerator()
sum_over_processes = accelerator.reduce(torch.ones(1), "sum").item()
report = {
    "num_processes": accelerator.num_processes,
    "process_index": accelerator.process_index,
    "sum_over_processes": sum_over_processes,
    "device": accelerator.device.type,
    "backend": accelerator.state.backend,
    "world_size": os.environ.get("WORLD_SIZE"),
    "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    "arguments": sys.argv[2:],
}
Path(sys.argv[1], f"{os.getpid()}.json").write_text(json.dumps(report))
accelerator.end_training()
