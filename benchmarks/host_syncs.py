"""Count, for one batch of each part, what makes a GPU wait for the host: no GPU is needed.

    python benchmarks/host_syncs.py [--json] [--only TEXT] [--operators]

Each case runs on fake tensors (`torch._subclasses.FakeTensorMode`) of the device "cuda": shapes and
devices without values. Counted are host synchronisations (a value, a shape or a copy that the host
waits for), blocking copies to the device, asynchronous copies, and kernels (dispatched operators
that launch at least one). The budget of a step is 0, 0 and at most 1; kernels are to be few.
"""

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sync_cases import all_cases
from sync_cases.counting import count


def measure(only: str = "") -> list[dict[str, Any]]:
    """Counts of the cases whose names contain `only`."""
    found = []
    for case in all_cases():
        if only in case.name:
            counts = {k: v for k, v in asdict(count(case)).items() if v is not None}
            found.append({"name": case.name, **counts})
    return found


def main() -> None:
    """Print all counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--operators", action="store_true", help="list what was launched")
    parser.add_argument("--before", type=Path, help="earlier output of --json, to go beside this")
    a = parser.parse_args()
    found = measure(a.only)
    operators = {case["name"]: Counter(case.pop("operators")) for case in found}
    if a.json:
        before = {"before": json.loads(a.before.read_text())["cases"]} if a.before else {}
        print(json.dumps({"cases": found, **before}, indent=1))
        return
    width = max((len(case["name"]) for case in found), default=4)
    print(f"{'case':{width}}  syncs  blocking  async  kernels")
    for case in found:
        stopped = f"  stopped at {case['stopped_at']}" if "stopped_at" in case else ""
        print(
            f"{case['name']:{width}}  {case['host_syncs']:5}  {case['blocking_copies']:8}  "
            f"{case['async_copies']:5}  {case['kernels']:7}{stopped}"
        )
        if a.operators:
            print(
                *(f"    {n:4} {name}" for name, n in operators[case["name"]].most_common()),
                sep="\n",
            )


if __name__ == "__main__":
    main()
