"""A network of any depth without shortcuts, trained from near the identity, by JointRD or alone, on handwritten digits.

Paper     Li et al., NeurIPS 2020; the start and the rule for the depth are this project's (docs/experiments.md)
Command   with JointRD, at 34 layers
          jointrd train --config near_identity --workdir runs/near34
          (deeper, the study takes --config.mix.num_taps=7); without a teacher, at 258
          jointrd train --config near_identity --workdir runs/near258 --config.procedure=plain \\
              --config.model.stage_sizes=32,32,32,32
Hardware  two CPU cores; docs/experiments.md has what was measured
"""

from jointrd_jax.configs import any_depth


def get_config():
    config = any_depth.get_config()
    config.model.init = 'identity'
    config.model.activation = 'prelu'
    config.model.slope_layers = 17  # all rectifiers together bend as much as 17 ReLUs: slopes of 0.5 at 34 layers
    config.optimizer.rate_layers = 34  # at the rate of 34 layers 130 end at 90 %, and 258 do not train
    return config
