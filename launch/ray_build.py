"""Builders of one cache as Ray tasks: python launch/ray_build.py 8 RECIPE --cache s3://BUCKET/NAME.zarr"""

import subprocess
import sys

import ray

count, arguments = int(sys.argv[1]), sys.argv[2:]


@ray.remote(num_cpus=1, num_gpus=1, max_retries=3)
def build(index: int) -> None:
    """Build one part; a task that is lost is started anew."""
    part = f"{index + 1}/{count}"
    subprocess.run(["kdscale", "cache", "build", *arguments, "--part", part], check=True)


ray.get([build.remote(index) for index in range(count)])
