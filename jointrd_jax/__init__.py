"""Train a CNN without shortcuts to the accuracy of its ResNet (JointRD, NeurIPS 2020), in JAX."""

__version__ = '0.1.0'
