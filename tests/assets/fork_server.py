"""Runs kdscale commands in processes of their own without paying for imports each time.

Reads one JSON object a line ({"args", "cwd", "output", "env"}), forks, answers with the child's
process id and, when the child has ended, with its exit status (negative: the signal).
"""

# ruff: noqa: E402, T201  (threads are counted before anything starts some; print is the answer)

import json
import os
import sys

import torch

torch.set_num_threads(1)

import datasets  # noqa: F401  (what a child would import first)

import kdscale.commands.run  # noqa: F401
from kdscale.cli import main
from kdscale.distributed import create_accelerator

# torch and accelerate import seconds' worth of themselves when they are first used.
torch.optim.Adam(create_accelerator().prepare(torch.nn.Linear(1, 1)).parameters())


def run(args, cwd, output, env):
    os.environ.update(env)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.chdir(cwd)
    sys.argv = ["kdscale", *args]
    main()


for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 70
        try:
            run(**request)
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
