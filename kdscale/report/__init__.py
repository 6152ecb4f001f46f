"""Reports of runs: reads JSON and TOML of run folders, writes text, tables and charts.

Loads no model and imports no torch.
"""
