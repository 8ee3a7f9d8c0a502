"""The networks that a config can name: depths, blocks, stems, shortcuts and roads, as plain values.

Nothing is imported here, so that a command line or a config is checked without waiting for JAX.
"""

SHORTCUTS = ('all', 'projection', 'fading', 'none')
STEMS = ('cifar', 'imagenet', 'pool_first')
CIFAR_DEPTHS = (20, 32, 44, 56, 110)  # the CIFAR family of He et al.: three stages, width 16
STAGE_SIZES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    **{depth: ((depth - 2) // 6,) * 3 for depth in CIFAR_DEPTHS},
}
BOTTLENECK_DEPTHS = (50, 101, 152)
BOTTLENECK_EXPANSION = 4

REPARAMS = ('none', 'dirac', 'branches')
ACTIVATIONS = ('relu', 'leaky', 'prelu', 'annealed')
