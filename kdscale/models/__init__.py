"""Models: reference networks, the registry of names, preprocessing and weights files."""
