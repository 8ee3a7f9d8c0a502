#!/usr/bin/env bash
# The CIFAR teacher (the paper's RES_NMT).   scripts/cifar_resnet.sh [LAYERS=18] [DATASET=cifar10] [SEED=0] [--config.x=y ...]
. "$(dirname "$0")/common.sh"
layers=${1:-18} dataset=${2:-cifar10} seed=${3:-0}
exec python -m jointrd_jax.main --config "configs/$dataset.py" --workdir "$RUNS/$dataset/resnet$layers-$seed" \
  --config.procedure=resnet --config.model.depth="$layers" --config.seed="$seed" \
  --config.dataset.data_dir="$DATA_DIR" "${@:4}"
