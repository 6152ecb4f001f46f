"""Kills claimants at every moment and checks what the next one finds; run by test_lease.

A process of its own, which starts no thread before it forks. Prints the number of moments.
"""

import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

from kdscale.cache.lease import Leases

CHANGES = {"os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir"}
WRITES = os.O_WRONLY | os.O_RDWR


def kill_at(moment, root):
    """SIGKILL this process just before its `moment`-th change of the disk below `root`."""
    left = moment

    def hook(event, args):
        nonlocal left
        written = event == "open" and args[2] & WRITES and str(args[0]).startswith(str(root))
        if written or event in CHANGES:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def killed(work):
    """Run `work` in a fork; whether it was killed."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0


def claim_and_release(folder, moment):
    kill_at(moment, folder)
    with Leases(folder) as claims:
        assert claims.claim("part")


def check_next(folder):
    """In a fork: a claimant starts a thread."""
    began = time.monotonic()
    with Leases(folder) as claims:
        while not claims.claim("part"):
            time.sleep(0.01)
            assert time.monotonic() - began < 2
    assert time.monotonic() - began < 2
    assert not list(folder.iterdir()), list(folder.rglob("*"))


def die_holding(folder, name):
    Leases(folder).claim(name)
    os.kill(os.getpid(), signal.SIGKILL)


folder, moments = Path(sys.argv[1]), 1
folder.mkdir()
while killed(partial(claim_and_release, folder, moments)):
    assert not killed(partial(check_next, folder)), moments
    moments += 1
for number in range(20):
    assert killed(partial(die_holding, folder, f"part-{number}"))
    for name in (f"part-{number}", "part"):  # as earlier versions were killed: empty
        (folder / "claims").joinpath(f"{name}.{number + 1}").touch()
assert not killed(partial(check_next, folder))
shutil.rmtree(folder)
sys.stdout.write(f"{moments}\n")
