"""`python -m kdscale` and `accelerate launch ... -m kdscale`."""

import sys

from kdscale.errors import Interrupted

if __name__ == "__main__":
    try:
        from kdscale.cli import main
    except KeyboardInterrupt:  # nothing is begun
        sys.exit(Interrupted.exit_code)
    main()
