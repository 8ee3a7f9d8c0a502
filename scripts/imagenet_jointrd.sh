#!/usr/bin/env bash
# JointRD on ImageNet from the teacher of imagenet_resnet.sh.
#   scripts/imagenet_jointrd.sh [LAYERS=50] [ETA=5e-3] [PROCEDURE=jointrd] [WEIGHT_DECAY=1e-4] [--config.x=y ...]
. "$(dirname "$0")/common.sh"
layers=${1:-50} eta=${2:-5e-3} procedure=${3:-jointrd} decay=${4:-1e-4}
exec python -m jointrd_jax.main --config configs/imagenet.py \
  --workdir "$RUNS/imagenet/$procedure$layers-eta$eta-wd$decay" --config.procedure="$procedure" \
  --config.model.depth="$layers" --config.mix.eta="$eta" --config.optimizer.weight_decay="$decay" \
  --config.teacher.path="$RUNS/imagenet/resnet$layers-wd$decay" --config.dataset.data_dir="$DATA_DIR" "${@:5}"
