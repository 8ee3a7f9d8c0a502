"""Equivalent removal of shortcuts: a trained ResNet turned exactly into a wider plain network.

The RM operation of RMNet (Meng et al., "RMNet: Equivalently Removing Residual Connection from Networks",
2021). In a block, x >= 0 (its ReLU comes first) and

    out = conv_n(relu(... conv_1(x))) + x

*Reserving*: conv_1 gets as many more output channels as x has, each an identity kernel that copies one of
x's; the ReLU does not change them. Convolutions in between copy them on. *Merging*: conv_n gets as many more
input channels, with an identity kernel (or the projection's weights) that add x to out. A stride is taken
by the identity kernel as the projection takes it. The price is width inside the block.
"""

import numpy as np

from jointrd_jax.deploy.fold import fold_conv, fold_shortcut
from jointrd_jax.errors import UserError
from jointrd_jax.method.layers import BatchNorm, dirac_delta
from jointrd_jax.method.networks import Network, Variables


def batch_norm(bias: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters and statistics of a BatchNorm that only adds `bias`."""
    ones = np.ones(len(bias), np.float32)
    params = {'scale': ones * np.float32(np.sqrt(1 + BatchNorm.epsilon)), 'bias': bias.astype(np.float32)}
    return params, {'mean': 0 * ones, 'var': ones}


def without_shortcuts(network: Network, variables: Variables) -> tuple[Network, Variables]:
    """The plain network that computes what `network` computes, and its variables.

    Raises:
      UserError: there is no shortcut to remove, an activation is not a ReLU, or a convolution has groups.
    """
    kinds = network.block_shortcuts()
    if set(kinds) == {'none'}:
        raise UserError('the network has no shortcut to remove')
    if others := {*network.per_block(network.activation)} - {'relu'}:
        raise UserError(f'removing shortcuts needs ReLU activations; this network has {others.pop()}')
    if max(network.per_block(network.groups)) > 1:
        raise UserError('shortcuts cannot be removed through grouped convolutions, which mix no channels across groups')
    params, batch_stats, hidden = dict(variables['params']), dict(variables['batch_stats']), []
    for place, kind in zip(network.block_names, kinds):
        layers = 3 if network.bottleneck else 2
        folded = [fold_conv(variables, place, f'conv{i}', f'bn{i}') for i in range(1, layers + 1)]
        shortcut = fold_shortcut(variables, place, kind)
        reserved = folded[0][0].shape[2] if shortcut else 0
        kernels, biases = [kernel for kernel, _ in folded], [bias for _, bias in folded]
        for i, kernel in enumerate(kernels[:-1]):
            size, inputs, outputs = kernel.shape[0], kernel.shape[2], kernel.shape[3]
            copied = dirac_delta((size, size, reserved, reserved))
            if i == 0:  # the copies read the block's input itself
                kernels[i] = np.concatenate([kernel, copied], 3) if reserved else kernel
            else:
                kernels[i] = np.zeros((size, size, inputs + reserved, outputs + reserved))
                kernels[i][:, :, :inputs, :outputs], kernels[i][:, :, inputs:, outputs:] = kernel, copied
            biases[i] = np.concatenate([biases[i], np.zeros(reserved)])
        if shortcut:
            kernel, bias = shortcut
            merged = np.zeros((*kernels[-1].shape[:2], *kernel.shape[2:]))
            centre = kernels[-1].shape[0] // 2
            merged[centre, centre] = kernel[0, 0]
            kernels[-1], biases[-1] = np.concatenate([kernels[-1], merged], 2), biases[-1] + bias
        hidden.append(kernels[0].shape[3])
        params[place], batch_stats[place] = {}, {}
        for i, (kernel, bias) in enumerate(zip(kernels, biases), 1):
            params[place][f'conv{i}'] = {'kernel': kernel.astype(np.float32)}
            params[place][f'bn{i}'], batch_stats[place][f'bn{i}'] = batch_norm(bias)
    plain = network.clone(shortcuts='none', reparam='none', hidden=tuple(hidden))
    return plain, {'params': params, 'batch_stats': batch_stats}
