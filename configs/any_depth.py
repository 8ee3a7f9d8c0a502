"""JointRD at any depth, on handwritten digits: one rule for the weights of the paths, in half the epochs of digits.

Paper     Li et al., NeurIPS 2020; the weights of the paths are this project's (docs/experiments.md)
Command   several roads to a network without shortcuts beside each other (fading is the recipe to start with)
          jointrd compare --config any_depth --workdir runs/any_depth \\
              --procedures resnet,plain+identity+prelu,jointrd+identity+prelu --config.model.slope_layers=17
Hardware  two CPU cores; docs/experiments.md has what was measured
"""

from jointrd_jax.configs import digits


def get_config():
    config = digits.get_config()
    config.epochs = 32
    # The student's own loss has weight 1 and the mixed paths together m(t), however many there are: divided by their
    # number, as the authors do it, the loss that trains the student's last blocks would fade with every tap.
    config.mix.average_paths = False
    config.mix.mean_of_paths = True
    config.optimizer.clip_norm = 1.0  # the first gradients of a deep plain network are large (docs/experiments.md)
    config.nan.action = 'skip'  # at 258 layers some of them are more than float32 holds
    return config
