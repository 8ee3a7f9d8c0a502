"""Depth without shortcuts: 66 layers on handwritten digits (and 130, see below).

Paper     Li et al., NeurIPS 2020, at depths where a plain network does not train at all
Command   python -m jointrd_jax.compare --config configs/digits_deep.py --workdir runs/deep66
          python -m jointrd_jax.compare --config configs/digits_deep.py --workdir runs/deep130 \
              --config.model.stage_sizes=16,16,16,16 --config.optimizer.clip_norm=1.0
Hardware  two CPU cores; docs/experiments.md has the accuracies as measured. With other jobs beside it a run of 66
          layers took 1 (plain) to 2.5 minutes (JointRD and Dirac), of 130 layers 3 to 5
"""

from jointrd_jax.configs import digits


def get_config():
    config = digits.get_config()
    config.epochs = 80
    config.model.stage_sizes = (8, 8, 8, 8)
    config.mix.num_taps = 7
    return config
