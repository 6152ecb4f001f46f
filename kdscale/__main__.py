"""`python -m kdscale` and `accelerate launch ... -m kdscale`."""

from kdscale.cli import main

if __name__ == "__main__":
    main()
