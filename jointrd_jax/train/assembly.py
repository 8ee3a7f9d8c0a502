"""From a config and its dataset to what the steps are made of: `Job` runs them, `jointrd plan` only compiles them."""

from collections.abc import Callable

import jax
import ml_collections

from jointrd_jax.data.base import Dataset
from jointrd_jax.method.interface import Variables
from jointrd_jax.method.joint import Method
from jointrd_jax.method.networks import Network
from jointrd_jax.runs import from_config
from jointrd_jax.train import step as step_lib
from jointrd_jax.train.step import AXIS, TrainState


class Assembly:
    """The networks, schedules and optimiser of a run; nothing is computed, and no device is asked.

    Args:
      config: the run's.
      dataset: the run's.
      student: as `config` describes it.
      method: the same.
      teacher: the network of a frozen teacher that is at hand; without one, if the method needs a teacher, it is the
        network that `config` describes.

    Attributes:
      trains_teacher: whether the teacher is trained beside the student.
      networks: the student, its teacher and its connectors.
      mixing_weight: epoch -> m(t).
      schedule: step -> learning rate.
      annealed: step -> the numbers that fall to 0 in training, by name; None where there are none.
      hybrids: the taps whose mixed paths are evaluated too.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        dataset: Dataset,
        student: Network,
        method: Method,
        teacher: Network | None = None,
    ):
        self.config, self.dataset, self.student, self.method = config, dataset, student, method
        if teacher is None and method.needs_teacher:
            teacher = from_config.resnet(config, len(dataset.classes), AXIS)
        self.trains_teacher = config.procedure == 'jointrd_scratch'
        self.networks = step_lib.networks_for(student, teacher, method)
        self.steps_per_epoch = dataset.train_size // config.batch_size
        self.mixing_weight = from_config.mixing_weight(config)
        self.schedule = from_config.learning_rate(config, student, self.steps_per_epoch)
        self.optimizer = from_config.optimizer(config, self.schedule)
        self.annealed = from_config.annealed(config, student, self.steps_per_epoch)
        self.ema_decay = config.ema.decay
        self.hybrids = method.taps if config.eval_hybrids else ()

    def make_state(self, seed: jax.typing.ArrayLike, student: Variables | None = None) -> TrainState:
        """A fresh state; `student` gives other initial weights than random ones. Traceable."""
        return step_lib.initial_state(
            jax.random.key(seed), self.networks, self.method, self.dataset.image_shape,
            self.optimizer, self.trains_teacher, student,
            averages=self.ema_decay > 0, skips=self.config.nan.action == 'skip',
        )  # fmt: skip

    def make_train_step(self, method: Method, mesh: jax.sharding.Mesh, steps: int = 1) -> Callable:
        """The program that takes `steps` steps on the loss `method`; see `step.make_train_step`."""
        device_step = step_lib.make_device_step(
            self.networks,
            method,
            self.optimizer,
            self.steps_per_epoch,
            self.mixing_weight,
            self.annealed,
            self.ema_decay,
        )
        return step_lib.make_train_step(self.dataset, device_step, mesh, steps)

    def make_eval_step(self) -> Callable:
        """The program that evaluates a batch; see `step.make_eval_step`."""
        return step_lib.make_eval_step(self.dataset, self.networks, self.hybrids)


def of(config: ml_collections.ConfigDict, dataset: Dataset) -> Assembly:
    """What `config` describes.

    Raises:
      UserError: taps that the network does not have.
    """
    student = from_config.student(config, len(dataset.classes), AXIS)
    return Assembly(config, dataset, student, from_config.method(config, student))
