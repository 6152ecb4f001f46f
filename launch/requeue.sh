#!/usr/bin/env bash
# Sourced by the files for SLURM: runs a job's command and, where it was only put off, requeues the job.
# kdscale exits with 75 once it has saved its state on SIGTERM or SIGUSR1.
set -euo pipefail

run_or_requeue() { # COMMAND [ARGUMENT...]
  local command='' status=0 out_of_time=no cancelled=no
  # Before the command is there, or a signal in between would end this script and not the command.
  # srun and launch/start.py pass a SIGTERM on to the processes.
  trap 'out_of_time=yes; [[ -z $command ]] || kill -TERM "$command" 2>/dev/null || true' USR1
  trap 'cancelled=yes; [[ -z $command ]] || kill -TERM "$command" 2>/dev/null || true' TERM
  "$@" &
  command=$!
  [[ $out_of_time$cancelled == nono ]] || kill -TERM "$command" 2>/dev/null || true

  # A trapped signal ends `wait` early: wait until the command is gone, then ask for its status.
  while kill -0 "$command" 2>/dev/null; do
    wait "$command" || true
  done
  wait "$command" || status=$?

  # Above 128: killed, out of time before the state was saved; there are earlier checkpoints. A job
  # that was cancelled saves as well, and stays down. One that failed would fail again.
  if [[ $cancelled == no ]] &&
    { [[ $status -eq 75 ]] || [[ $out_of_time == yes && $status -gt 128 ]]; }; then
    printf 'stopped before its end (status %s): job %s is requeued\n' "$status" "$SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  return "$status"
}
