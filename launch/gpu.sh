#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

usage='usage: launch/gpu.sh --config=… --workdir=… [--config.x=…] [options]

Trains on one machine with one to eight NVIDIA GPUs, in one process. The first time it installs JAX with CUDA in .venv.

  --gpus=N            only the first N of those that CUDA_VISIBLE_DEVICES allows; all of them by default
  --max-restarts=100  how often an interrupted training is started again
  --dry-run           only print the commands

PYTHON is the interpreter; where it is set, nothing is installed. Paths are relative to the repository.'
valued='gpus max_restarts' switches='dry_run'
gpus=''
parse "$@"
needs nvidia-smi 'this needs an NVIDIA GPU and its driver; without one take launch/local.sh'

devices=()
if [[ $gpus ]]; then
    whole gpus 1 8
    listed=$(run nvidia-smi --list-gpus)
    [[ $dry_run ]] || (($(grep -c ^GPU <<<"$listed") >= gpus)) || die "--gpus=$gpus, but nvidia-smi lists:"$'\n'"$listed"
    visible=${CUDA_VISIBLE_DEVICES-$(seq -s , 0 $((gpus - 1)))}
    IFS=, read -ra allowed <<<"$visible"
    ((${#allowed[@]} >= gpus)) || die "--gpus=$gpus, but CUDA_VISIBLE_DEVICES=$visible allows ${#allowed[@]}"
    visible=$(IFS=, && echo "${allowed[*]:0:gpus}")
    devices=("CUDA_VISIBLE_DEVICES=$visible")
fi
install launch/requirements-gpu.txt

# With the platform named, JAX refuses to start without a GPU instead of training on the CPU.
process() {
    become env JAX_PLATFORMS=cuda,cpu "${devices[@]}" "$PYTHON" -m cvsa_jax.main "${train[@]}"
}

restarting together 1
