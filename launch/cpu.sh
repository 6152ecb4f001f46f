#!/usr/bin/env bash
# Starts N processes on this machine's CPU, talking over gloo:
#   launch/cpu.sh 2 train cifar10-tutorial
# `accelerate launch --cpu --num_processes N` looks simpler and starts one: launch/README.md.
# OMP_NUM_THREADS, where set, is kept. KDSCALE_MODULE names another module to start (the tests do).
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  printf 'usage: launch/cpu.sh PROCESSES COMMAND [ARGUMENT...]\n' >&2
  printf 'for example: launch/cpu.sh 2 train cifar10-tutorial\n' >&2
  exit 2
fi
processes=$1
shift
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

# The launcher would otherwise set one thread a process, whatever the number of cores.
if [[ -z ${OMP_NUM_THREADS:-} ]]; then
  cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
  threads=$((cores / processes))
  export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
fi

# Port 0: any free one, so that two runs on one machine do not meet.
export ACCELERATE_USE_CPU=true
exec python3 "$here/start.py" --config_file "$here/multi_gpu.yaml" \
  --num_processes "$processes" --mixed_precision no --main_process_port 0 \
  -m "${KDSCALE_MODULE:-kdscale}" "$@"
