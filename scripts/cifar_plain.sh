#!/usr/bin/env bash
# The plain baseline on CIFAR (CNN_NMT).   scripts/cifar_plain.sh [LAYERS=18] [DATASET=cifar10] [SEED=0] [--config.x=y ...]
. "$(dirname "$0")/common.sh"
layers=${1:-18} dataset=${2:-cifar10} seed=${3:-0}
exec python -m jointrd_jax.main --config "configs/$dataset.py" --workdir "$RUNS/$dataset/plain$layers-$seed" \
  --config.procedure=plain --config.model.depth="$layers" --config.seed="$seed" \
  --config.dataset.data_dir="$DATA_DIR" "${@:4}"
