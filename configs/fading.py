"""A network of any depth without shortcuts, trained from near the identity with shortcuts that fade in training.

Paper     Li et al., NeurIPS 2020, its mixed paths fading out entirely; shortcuts that fade: Monti et al., ICANN 2018
Command   with JointRD, at 66 layers
          jointrd train --config fading --workdir runs/fading66 --config.model.stage_sizes=8,8,8,8
          without a teacher: --config.procedure=plain
Hardware  two CPU cores; docs/experiments.md has what was measured
"""

from jointrd_jax.configs import near_identity


def get_config():
    config = near_identity.get_config()
    config.model.shortcuts = 'fading'
    config.mix.eta = 0.0  # paths that stay to the end cost two points in one run, and time (docs/experiments.md)
    return config
