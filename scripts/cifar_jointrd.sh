#!/usr/bin/env bash
# JointRD on CIFAR from the teacher of cifar_resnet.sh.
#   scripts/cifar_jointrd.sh [LAYERS=18] [ETA=0.5] [PROCEDURE=jointrd] [SEED=0] [DATASET=cifar10] [--config.x=y ...]
# The authors' student keeps its projections and is Dirac-parametrised:
#   add --config.model.shortcuts=projection --config.model.reparam=dirac
. "$(dirname "$0")/common.sh"
layers=${1:-18} eta=${2:-0.5} procedure=${3:-jointrd} seed=${4:-0} dataset=${5:-cifar10}
exec python -m jointrd_jax.main --config "configs/$dataset.py" \
  --workdir "$RUNS/$dataset/$procedure$layers-eta$eta-$seed" --config.procedure="$procedure" \
  --config.model.depth="$layers" --config.mix.eta="$eta" --config.seed="$seed" \
  --config.teacher.path="$RUNS/$dataset/resnet$layers-$seed" --config.dataset.data_dir="$DATA_DIR" "${@:6}"
