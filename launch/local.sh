#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

usage='usage: launch/local.sh --config=… --workdir=… [--config.x=…] [options]

Trains with several processes on the CPU of this machine, as on several hosts: for trying things out.

  --processes=2       how many
  --port=…            of the first one, where the others find it
  --max-restarts=100  how often an interrupted training is started again
  --dry-run           only print the commands

PYTHON is the interpreter, .venv/bin/python by default. Paths are relative to the repository.'
valued='processes port max_restarts' switches='dry_run'
processes=2 port=$((20000 + $$ % 10000))
parse "$@"
whole processes 1
whole port 1 65535
PYTHON=${PYTHON:-.venv/bin/python}
[[ $dry_run || -x $PYTHON ]] || die "$PYTHON is not there: run make setup"

process() {
    become env JAX_PLATFORMS=cpu "$PYTHON" -m cvsa_jax.main "${train[@]}" \
        --coordinator="localhost:$port" --num_processes="$processes" --process_id="$1"
}

restarting together "$processes"
