"""Runs as pages that people read: run folders to numbers, numbers to text, tables and drawings.

Reads JSON and TOML, gives strings: no model is loaded, no torch imported.
"""
