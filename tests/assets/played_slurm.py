"""SLURM, played: stand-ins for its commands, which note how they were called."""

import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"

AS_SECOND_NODE = """
SLURM_NODEID=1 exec "$@"
"""
"""What srun does with a command where only its arguments are looked at."""

ON_TWO_NODES = """
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
trap 'kill -TERM $first $second' TERM
status=0
for task in $first $second; do
  while kill -0 $task 2>/dev/null; do wait $task; done
  wait $task; code=$?
  if [ $code -gt $status ]; then status=$code; fi
done
exit $status
"""
"""What srun does: starts a task on each node, passes SIGTERM on, ends with the highest status."""

WAITS = "while :; do sleep 0.05; done"


class Slurm:
    """A cluster of two nodes, in a folder of its own."""

    def __init__(self, folder, *, srun=AS_SECOND_NODE, nodes=("node-a", "node-b")):
        self.calls = folder / "calls"
        self.calls.touch()
        self.bin = folder / "bin"
        self.bin.mkdir()
        shown = "\\n".join(nodes)
        self.command(
            "scontrol",
            'echo "scontrol $*" >> "$CALLS"',
            f'if [ "$1" = show ]; then printf "{shown}\\n"; fi',
        )
        self.command("srun", 'while [ "${1#-}" != "$1" ]; do shift; done', srun)

    def command(self, name, *lines):
        """Stand in for a command."""
        path = self.bin / name
        path.write_text("\n".join(["#!/usr/bin/env bash", *lines]) + "\n")
        path.chmod(0o755)

    def noted(self, name, action, trap=""):
        """Stand in for what a job starts. Once the call is noted, its trap stands."""
        self.command(name, trap, f'echo "{name} $*" >> "$CALLS"', action)

    def submit(self, file, *arguments, **extra):
        """Start a job; its output goes to a pipe."""
        ours = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        return subprocess.Popen(
            [LAUNCH / file, *map(str, arguments)],
            env=ours
            | {
                "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
                "CALLS": str(self.calls),
                "SLURM_SUBMIT_DIR": str(ROOT),
                "SLURM_JOB_ID": "41",
                "SLURM_JOB_NODELIST": "node-[a-b]",
                "SLURM_GPUS_ON_NODE": "4",
                "SLURM_CPUS_PER_TASK": "16",
                **extra,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def lines(self, start):
        """The calls that begin with a word."""
        return [line for line in self.calls.read_text().splitlines() if line.startswith(start)]

    def requeued(self):
        """Whether a job was."""
        return bool(self.lines("scontrol requeue"))

    def wait_for(self, start):
        """Until a call that begins with a word was noted."""
        deadline = time.perf_counter() + 30
        while not self.lines(start):
            assert time.perf_counter() < deadline
            time.sleep(0.02)
