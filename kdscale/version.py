"""The version of kdscale, which its files and reports state."""

__version__ = "0.1.0"
