#!/usr/bin/env bash
# The plain baseline on ImageNet (CNN_NMT).   scripts/imagenet_plain.sh [LAYERS=50] [WEIGHT_DECAY=1e-4] [--config.x=y ...]
. "$(dirname "$0")/common.sh"
layers=${1:-50} decay=${2:-1e-4}
exec python -m jointrd_jax.main --config configs/imagenet.py --workdir "$RUNS/imagenet/plain$layers-wd$decay" \
  --config.procedure=plain --config.model.reparam=none --config.model.depth="$layers" \
  --config.optimizer.weight_decay="$decay" --config.dataset.data_dir="$DATA_DIR" "${@:3}"
