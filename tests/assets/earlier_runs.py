"""Run folders as earlier versions of kdscale left them."""

import json

from safetensors import safe_open
from safetensors.torch import load_file, save_file


def without_identity(run):
    """Take out of a run's files what binds them to each other, and their checksums."""
    for file in [*run.glob("*.json"), *run.glob("checkpoints/*/*.json")]:
        table = json.loads(file.read_text())
        for key in ("run_id", "start", "checksum"):
            table.pop(key, None)
        file.write_text(json.dumps(table))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rest = [{k: v for k, v in line.items() if k not in ("run_id", "crc32")} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rest))
    for file in run.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        known = {k: v for k, v in metadata.items() if "sum" not in k and "sha256" not in k}
        known.pop("run_id")
        save_file(load_file(file), file, metadata=known)
