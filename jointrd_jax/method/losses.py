"""The loss terms of JointRD and its baselines: pure functions, averaged over the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jointrd_jax.method.interface import AnyArray


def cross_entropy(
    logits: Float[AnyArray, 'B classes'], labels: Int[AnyArray, 'B'], smoothing: float = 0.0
) -> Float[Array, '']:
    """Cross entropy of `logits` [B, classes] with integer `labels` [B], with label smoothing."""
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    targets = targets * (1 - smoothing) + smoothing / logits.shape[-1]
    return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()


def margins(scale: Float[AnyArray, 'C'], bias: Float[AnyArray, 'C']) -> Float[Array, 'C']:
    """Per-channel margin of the margin ReLU, from a BatchNorm's `scale` and `bias` [C].

    The expected value of the channel given that it is negative, for a normal distribution of mean `bias`
    and standard deviation |scale|; -3 |scale| where it is practically never negative
    (Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, equation 5).
    """
    std = jnp.maximum(jnp.abs(scale), 1e-12)
    z = -bias / std
    below = jax.scipy.stats.norm.cdf(z)
    expected = bias - std * jax.scipy.stats.norm.pdf(z) / jnp.where(below > 0, below, 1)
    return jnp.where(below > 1e-3, expected, -3 * std)


def margin_distillation(
    features: Float[AnyArray, 'B h w C'], target: Float[AnyArray, 'B h w C'], margin: Float[AnyArray, 'C']
) -> Float[Array, '']:
    """Margin-ReLU partial L2 distance, summed over channels and space, averaged over the batch.

    D(f, t) = sum over positions of (f - t')^2, t' = max(t, margin), zero where f <= t' <= 0: the teacher
    says "off" and the student is further off (Heo et al., ICCV 2019, equations 2-4).

    Args:
      features: the student's connected feature map [B, h, w, C], before ReLU.
      target: the teacher's feature map, same shape; no gradient flows to it.
      margin: [C], from `margins`.
    """
    wide = jnp.promote_types(jnp.float32, features.dtype)
    features = features.astype(wide)
    target = jnp.maximum(jax.lax.stop_gradient(target).astype(wide), margin.reshape(1, 1, 1, -1))
    counts = (features > target) | (target > 0)
    return jnp.where(counts, jnp.square(features - target), 0).sum((1, 2, 3)).mean()


def hinton_kl(
    logits: Float[AnyArray, 'B classes'], teacher_logits: Float[AnyArray, 'B classes'], temperature: float
) -> Float[Array, '']:
    """T^2 KL(teacher || student) of the softened distributions (Hinton et al., 2015), logits [B, classes]."""
    log_p = jax.nn.log_softmax(logits / temperature)
    log_q = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits) / temperature)
    return temperature**2 * (jnp.exp(log_q) * (log_q - log_p)).sum(-1).mean()
