"""Count the requests of builders at one pace for shards that others build: docs/scaling.md.

    python benchmarks/builder_requests.py [--builders 8] [--no-parts]

The builders are simulated, turn by turn, on obstore's store in memory; deterministic.
"""

# ruff: noqa: E402  (the simulation is a test's)

import argparse
import json
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / "cache"), str(TESTS / "stores")]

import synthetic
from obstore.store import MemoryStore
from test_build_parts import SimulatedBuilder, close, requests_of_others, run

from kdscale.building.part import WHOLE, Part
from kdscale.cache.stores.object_store import ObjectStore
from kdscale.cache.writer import create_or_resume, finish


def main() -> None:
    """Print requests for each shard of others, listings included: the finishing builder first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--builders", type=int, default=8)
    parser.add_argument("--no-parts", action="store_true")
    arguments = parser.parse_args()
    store = ObjectStore("memory://cache", MemoryStore())
    manifest = synthetic.asked(num_views=4, num_samples=512, shard_samples=4)
    manifest = create_or_resume(store, manifest, synthetic.labels(manifest))
    count = arguments.builders
    builders = [
        SimulatedBuilder(store, manifest, WHOLE if arguments.no_parts else Part(index, count))
        for index in range(count)
    ]
    run(builders)
    finish(builders[0].store, manifest, {}, builders[0].leases)
    others = [manifest.num_views * manifest.num_shards - len(one.built) for one in builders]
    requests = [sum(requests_of_others(one).values()) for one in builders]
    print(json.dumps([round(r / n, 2) for r, n in zip(requests, others, strict=True)]))
    close(builders)


if __name__ == "__main__":
    main()
