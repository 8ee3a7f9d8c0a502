"""JointRD: the method.

A plain network P and a residual network R have the same blocks; P_k(x) is P's feature map after its
first k blocks, R_{>k} the rest of R and its head. With taps k_1 < ... < k_n (block boundaries):

    path i <= n:   z_i = R_{>k_i}(P_{k_i}(x))       P's early blocks, R's later ones
    the student:   z   = P(x)                       what is deployed

    L = m(t) * sum_i [CE(z_i, y) + w D(c_i(f_i), f_R)]  +  CE(z, y) + w D(c(f), f_R)

so the gradient that reaches P's early blocks is a mixture of the one through P itself and the ones
through R's shortcuts. f is a path's last feature map, f_R the teacher's, c a 1x1 connector, D the
margin-ReLU distance. R sees running statistics in every path and gets no update from L.

Li et al., "Residual Distillation: Towards Portable Deep Neural Networks without Shortcuts",
NeurIPS 2020, equations 3-6. Every baseline is this loss with terms left out (see `Method`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jointrd_jax.method import losses
from jointrd_jax.method.networks import Variables

STUDENT = 'student'


@dataclass(frozen=True)
class Method:
    """Which terms L has. The defaults are plain training: cross entropy alone."""

    taps: tuple[int, ...] = ()  # block boundaries where P crosses into R; none: no mixed path
    distill_weight: float = 0.0  # w; 0: neither connectors nor the teacher's features exist
    average_paths: bool = False  # divide L by the number of paths, as the authors' joint branch does
    label_smoothing: float = 0.0
    kl_alpha: float = 0.0  # Hinton distillation: (1 - alpha) CE + alpha T^2 KL; 0: none
    kl_temperature: float = 4.0

    @property
    def num_paths(self) -> int:
        return len(self.taps) + 1

    @property
    def reads_teacher(self) -> bool:
        """Whether L needs the teacher's own outputs for the images (not only its later blocks)."""
        return self.distill_weight > 0 or self.kl_alpha > 0

    @property
    def needs_teacher(self) -> bool:
        return self.reads_teacher or bool(self.taps)

    def without_mixing(self) -> 'Method':
        """The same loss where m(t) is 0, for the same divisor (see `joint_loss`)."""
        return Method(**{**self.__dict__, 'taps': ()})


def path_names(taps: Sequence[int]) -> tuple[str, ...]:
    """'path1', 'path2', ... for the mixed paths in the order of `taps`, and 'student'."""
    return (*(f'path{i}' for i in range(1, len(taps) + 1)), STUDENT)


@dataclass(frozen=True)
class Networks:
    """The modules of a training run. `teacher` and `connectors` are None where the method has none.

    Any Flax modules with the methods `__call__(x, train, taps) -> Outputs`, `run_blocks`, `run_head`
    and the attribute `num_blocks` (see `models.Network`) can stand here.
    """

    student: nn.Module
    teacher: nn.Module | None = None
    connectors: nn.Module | None = None


def mixing_weight(epoch: jax.typing.ArrayLike, eta: float, mix_epochs: float) -> jax.Array:
    """m(t): a cosine from 1 at epoch 0 to `eta` at `mix_epochs`, `eta` from then on."""
    epoch = jnp.asarray(epoch, jnp.float32)
    progress = jnp.minimum(epoch / mix_epochs, 1) if mix_epochs else jnp.ones_like(epoch)
    return eta + (1 - eta) * (1 + jnp.cos(jnp.pi * progress)) / 2


def residual_paths(
    teacher: nn.Module, variables: Variables, tapped: Sequence[jax.Array], taps: Sequence[int]
) -> list[tuple[jax.Array, jax.Array]]:
    """(z_i, f_i) of every mixed path: the maps `tapped` at `taps` through R's later blocks and head.

    With running statistics R is a function of each image alone, so paths are batched: a block of R
    runs once, on all paths that have reached it.
    """
    if not taps:
        return []
    residual = teacher.bind(variables)
    bounds = (*taps, residual.num_blocks)
    h = None
    for entering, start, stop in zip(tapped, bounds, bounds[1:]):
        h = entering if h is None else jnp.concatenate([h, entering])
        h = residual.run_blocks(h, start, stop)
    return list(zip(jnp.split(residual.run_head(h), len(taps)), jnp.split(h, len(taps))))


def joint_loss(
    params: dict[str, Any],
    batch_stats: dict[str, Any],
    images: jax.Array,
    labels: jax.Array,
    *,
    networks: Networks,
    method: Method,
    mix: jax.typing.ArrayLike = 1.0,
    teacher: Variables | None = None,
    teacher_logits: jax.Array | None = None,
    teacher_features: jax.Array | None = None,
    margin: jax.Array | None = None,
    num_paths: int | None = None,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, Any]]]:
    """L for one batch, its named terms, and the running statistics after the forward pass.

    Args:
      params: trained parameters, {'student': ..., 'connectors': ...}; the latter only if `distill_weight` > 0.
      batch_stats: running statistics, with the same keys.
      images: [B, H, W, C], normalised.
      labels: [B] integers.
      mix: m(t).
      teacher: R's variables; constants, no gradient is computed for them.
      teacher_logits: R(x), where the method reads it.
      teacher_features: f_R, where the method reads it.
      margin: [C] per-channel margin of D, from `losses.margins`.
      num_paths: divisor of `average_paths` where it is not the method's own.
    """
    student, updates = networks.student.apply(
        {'params': params['student'], 'batch_stats': batch_stats['student']},
        images, train=True, taps=method.taps, mutable=['batch_stats'],
    )  # fmt: skip
    outputs = residual_paths(networks.teacher, teacher, student.taps, method.taps)
    paths = dict(zip(path_names(method.taps), [*outputs, (student.logits, student.features)]))
    weight = {path: 1.0 if path == STUDENT else mix for path in paths}
    batch_stats = {**batch_stats, STUDENT: updates['batch_stats']}

    ce = {path: losses.cross_entropy(z, labels, method.label_smoothing) for path, (z, _) in paths.items()}
    loss = (1 - method.kl_alpha) * sum(weight[path] * ce[path] for path in paths)
    terms = {f'ce/{path}': value for path, value in ce.items()}
    if method.distill_weight:
        connected, updates = networks.connectors.apply(
            {'params': params['connectors'], 'batch_stats': batch_stats['connectors']},
            {path: f for path, (_, f) in paths.items()}, mutable=['batch_stats'],
        )  # fmt: skip
        batch_stats['connectors'] = {**batch_stats['connectors'], **updates['batch_stats']}
        for path, f in connected.items():
            terms[f'distill/{path}'] = losses.margin_distillation(f, teacher_features, margin)
            loss += weight[path] * method.distill_weight * terms[f'distill/{path}']
    if method.kl_alpha:
        terms['kl/student'] = losses.hinton_kl(student.logits, teacher_logits, method.kl_temperature)
        loss += method.kl_alpha * terms['kl/student']
    if method.average_paths:
        loss /= num_paths or method.num_paths
    return loss, ({'loss': loss, **terms}, batch_stats)
