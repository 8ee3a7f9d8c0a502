"""JointRD: the method.

A plain network P and a residual network R have the same blocks; P_k(x) is P's feature map after its
first k blocks, R_{>k} the rest of R and its head. With taps k_1 < ... < k_n (block boundaries):

    path i <= n:   z_i = R_{>k_i}(P_{k_i}(x))       P's early blocks, R's later ones
    the student:   z   = P(x)                       what is deployed

    L = m(t) * sum_i [CE(z_i, y) + w D(c_i(f_i), f_R)]  +  CE(z, y) + w D(c(f), f_R)

so the gradient that reaches P's early blocks is a mixture of the one through P itself and the ones
through R's shortcuts. f is a path's last feature map, f_R the teacher's, c a 1x1 connector, D the
margin-ReLU distance. R uses its running statistics in every path and gets no update from L.

Li et al., "Residual Distillation: Towards Portable Deep Neural Networks without Shortcuts",
NeurIPS 2020, equations 3-6. Every baseline is this loss with terms left out (see `Method`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jointrd_jax.method import losses
from jointrd_jax.method.interface import AnyArray, Outputs, StagedNetwork, Variables, required

STUDENT, TEACHER = 'student', 'teacher'
CE, DISTILL, KL = KINDS = ('ce', 'distill', 'kl')  # of the loss terms, see `term_name`
LOSS = 'loss'  # what they add up to


@dataclass(frozen=True)
class Method:
    """Which terms L has. The defaults are plain training: cross entropy alone. `runs.from_config.method` makes it of
    a config, with the taps that the config asks for."""

    taps: tuple[int, ...] = ()  # block boundaries where P crosses into R; none: no mixed path
    distill_weight: float = 0.0  # w; 0: neither connectors nor the teacher's features exist
    average_paths: bool = False  # divide L by the number of paths, as the authors' joint branch does
    mean_of_paths: bool = False  # divide m(t) by the number of mixed paths: together they weigh as much as one
    label_smoothing: float = 0.0
    kl_alpha: float = 0.0  # Hinton distillation: (1 - alpha) CE + alpha T^2 KL; 0: none
    kl_temperature: float = 4.0
    mixes: bool = True  # False: m(t) is 0 and the mixed paths are not run; L is divided as with them

    @property
    def num_paths(self) -> int:
        return len(self.taps) + 1

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that are run: 'path1', 'path2', ... in the order of `taps`, and 'student'."""
        return path_names(self.taps if self.mixes else ())

    @property
    def reads_teacher(self) -> bool:
        """Whether L needs the teacher's own outputs for the images (not only its later blocks)."""
        return self.distill_weight > 0 or self.kl_alpha > 0

    @property
    def needs_teacher(self) -> bool:
        return self.reads_teacher or bool(self.taps)

    def without_mixing(self) -> 'Method':
        """The same loss where m(t) is 0."""
        return replace(self, mixes=False)


@dataclass(frozen=True)
class Networks:
    """The modules of a training run. `teacher` and `connectors` are None where the method has none."""

    student: StagedNetwork
    teacher: StagedNetwork | None = None
    connectors: nn.Module | None = None


class TeacherView(NamedTuple):
    """What the loss sees of the teacher R. All of it is constant: no gradient is computed for it.

    Attributes:
      variables: R's, for its later blocks.
      margin: [C] per-channel margin of D, from `losses.margins`; None where the method has no D.
      logits: R(x) [B, classes]; None where the method does not read it.
      features: f_R [B, h, w, C]; the same.
    """

    variables: Variables
    margin: Float[Array, 'C'] | None = None
    logits: Float[Array, 'B classes'] | None = None
    features: Float[Array, 'B h w C'] | None = None

    def with_outputs(self, outputs: Outputs) -> 'TeacherView':
        """This view with the teacher's outputs for the batch at hand."""
        return self._replace(logits=outputs.logits, features=outputs.features)


def path_names(taps: Sequence[int]) -> tuple[str, ...]:
    """'path1', 'path2', ... for the mixed paths in the order of `taps`, and 'student'."""
    return (*(f'path{i}' for i in range(1, len(taps) + 1)), STUDENT)


def term_name(kind: str, path: str) -> str:
    """What a term of the loss is called in logs, before its weight: 'ce/path1', 'distill/student', ..."""
    return f'{kind}/{path}'


def term_names(method: Method) -> tuple[str, ...]:
    """The names of what `joint_loss` reports: the loss, and its terms by kind and path."""
    paths = {
        CE: method.paths,
        DISTILL: method.paths if method.distill_weight else (),
        KL: (STUDENT,) if method.kl_alpha else (),
    }
    return (LOSS, *(term_name(kind, path) for kind in KINDS for path in paths[kind]))


def mixing_weight(epoch: jax.typing.ArrayLike, eta: float, mix_epochs: float) -> Float[Array, '*epochs']:
    """m(t): a cosine from 1 at epoch 0 to `eta` at `mix_epochs`, `eta` from then on."""
    epoch = jnp.asarray(epoch, jnp.float32)
    progress = jnp.minimum(epoch / mix_epochs, 1) if mix_epochs else jnp.ones_like(epoch)
    return eta + (1 - eta) * (1 + jnp.cos(jnp.pi * progress)) / 2


def residual_paths(
    teacher: StagedNetwork, variables: Variables, tapped: Sequence[Float[AnyArray, 'B _ _ _']], taps: Sequence[int]
) -> list[tuple[Float[Array, 'B classes'], Float[Array, 'B h w C']]]:
    """(z_i, f_i) of every mixed path: the maps `tapped` at `taps` through R's later blocks and head.

    With running statistics R is a function of each image alone, so paths are batched: a block of R
    runs once, on all paths that have reached it.
    """
    residual = teacher.bind(variables)
    bounds = (*taps, residual.num_blocks)
    h = residual.run_blocks(tapped[0], bounds[0], bounds[1])
    for entering, start, stop in zip(tapped[1:], bounds[1:], bounds[2:]):
        h = residual.run_blocks(jnp.concatenate([h, entering]), start, stop)
    return list(zip(jnp.split(residual.run_head(h), len(taps)), jnp.split(h, len(taps))))


def joint_loss(
    params: dict[str, Any],
    batch_stats: dict[str, Any],
    images: Float[AnyArray, 'B H W C'],
    labels: Int[AnyArray, 'B'],
    *,
    networks: Networks,
    method: Method,
    teacher: TeacherView | None = None,
    mix: jax.typing.ArrayLike = 1.0,
) -> tuple[Float[Array, ''], tuple[dict[str, Float[Array, '']], dict[str, Any]]]:
    """L for one batch, its named terms (see `term_names`), and the running statistics after the forward pass.

    Args:
      params: trained parameters, {'student': ..., 'connectors': ...}; the latter only if `distill_weight` > 0.
      batch_stats: running statistics, with the same keys.
      images: [B, H, W, C], normalised.
      labels: [B] integers.
      teacher: what `method` needs of R, if anything.
      mix: m(t).
    """
    taps = method.taps if method.mixes else ()
    student, updates = networks.student.apply(
        {'params': params[STUDENT], 'batch_stats': batch_stats[STUDENT]},
        images, train=True, taps=taps, mutable=['batch_stats'],
    )  # fmt: skip
    mixed = []
    if taps:
        residual, view = required(networks.teacher, 'a teacher'), required(teacher, "the teacher's variables")
        mixed = residual_paths(residual, view.variables, student.taps, taps)
    paths = dict(zip(method.paths, [*mixed, (student.logits, student.features)]))
    batch_stats = {**batch_stats, STUDENT: updates['batch_stats']}

    terms = {(CE, path): losses.cross_entropy(z, labels, method.label_smoothing) for path, (z, _) in paths.items()}
    if method.distill_weight:
        view = required(teacher, "the teacher's outputs")
        target, margin = required(view.features, "the teacher's features"), required(view.margin, 'a margin')
        connected, updates = required(networks.connectors, 'connectors').apply(
            {'params': params['connectors'], 'batch_stats': batch_stats['connectors']},
            {path: f for path, (_, f) in paths.items()}, mutable=['batch_stats'],
        )  # fmt: skip
        batch_stats['connectors'] = {**batch_stats['connectors'], **updates['batch_stats']}
        for path, f in connected.items():
            terms[DISTILL, path] = losses.margin_distillation(f, target, margin)
    if method.kl_alpha:
        logits = required(required(teacher, "the teacher's outputs").logits, "the teacher's logits")
        terms[KL, STUDENT] = losses.hinton_kl(student.logits, logits, method.kl_temperature)

    weights = {CE: 1 - method.kl_alpha, DISTILL: method.distill_weight, KL: method.kl_alpha}
    mix = mix / max(len(method.taps), 1) if method.mean_of_paths else mix
    parts = (weights[kind] * (1 if path == STUDENT else mix) * value for (kind, path), value in terms.items())
    loss = jnp.asarray(sum(parts))
    if method.average_paths:
        loss /= method.num_paths
    return loss, ({LOSS: loss, **{term_name(*key): value for key, value in terms.items()}}, batch_stats)
