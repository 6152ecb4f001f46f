"""`python -m kdscale` and `accelerate launch ... -m kdscale`."""

import os
import sys

_HERE = ("", os.getcwd())  # noqa: PTH109  (pathlib might be a user's own yet)
if __name__ == "__main__" and sys.path[0] in _HERE and not sys.flags.safe_path:
    # -m puts the current folder first, where a user's own datasets/ or random.py would stand in for
    # the library's. `module:factory` finds its module there all the same: it is added as the last.
    del sys.path[0]

from kdscale.errors import Interrupted  # noqa: E402  (found only in the libraries' folders)


def start() -> None:
    """Run the command line."""
    try:
        from kdscale.cli import main
    except KeyboardInterrupt:  # nothing is begun
        sys.exit(Interrupted.exit_code)
    main()


if __name__ == "__main__":
    start()
