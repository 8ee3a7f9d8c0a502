"""Orbax checkpoints, each with a file of the SHA-256 digests of its other files (its seal).

Layout: DIR/checkpoints/STEP/{student,best,trainer,meta}, one Orbax item each, and SHA256SUMS. On a disk a
checkpoint is written beside its final name, sealed and renamed, so it appears at once or not at all; in a bucket,
which cannot rename, it is there when its seal is (see `checkpoint_places`). One that does not match its seal is damaged
and is never restored from.
"""

import contextlib
import logging
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from jointrd_jax.errors import Stuck, UserError
from jointrd_jax.runs import checkpoint_places
from jointrd_jax.runs.seal import META, seal
from jointrd_jax.system import buckets, distributed, files, runtime

SAVE_SECONDS, SAVE_BYTES_PER_SECOND = 300, 10e6  # a save that takes longer than both allow is stuck


def size_on_disk(items: dict[str, Any]) -> int:
    """Bytes that a checkpoint of these trees takes at most: the arrays uncompressed, and what Orbax notes per array."""
    leaves = jax.tree.leaves(items)
    return sum(leaf.nbytes for leaf in leaves) + 2048 * len(leaves) + 2**16


def ignore_orphaned_writes() -> None:
    """Hide the tracebacks of writes that fail because another did.

    When one file of a checkpoint cannot be written, TensorStore's writes of others fail too, or end after the event
    loop that asked for them; each would print a traceback below the one line that says what is wrong.
    """
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'):
            previous(unraisable)

    if getattr(previous, '__qualname__', '') != hook.__qualname__:
        sys.unraisablehook = hook


def placed(array: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    """An array that every process has, with the sharding of `like`."""
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, like.sharding, lambda index: host[index])


class Checkpoints:
    """The checkpoints of one run directory, numbered by step.

    Args:
      run: the run directory.
      keep: how many of the newest scheduled ones to keep; None: nothing is written or deleted.
      scheduled: which steps the config asks for. Others (written when the run was told to stop) are kept
        only until the next one, so that they do not change what is kept and found later.
      say: tells the user that a damaged checkpoint was passed over.
    """

    def __init__(
        self,
        run: Path,
        keep: int | None = None,
        scheduled: Callable[[int], bool] = lambda step: True,
        say: Callable[[str], None] = lambda message: None,
    ):
        logging.getLogger('absl').setLevel(logging.CRITICAL)  # Orbax logs every step; its errors are exceptions
        self.place = checkpoint_places.at(run)
        self.directory = self.place.directory
        self.alone = buckets.is_remote(self.directory)  # hosts share no disk: the first writes for all
        self.keep, self.scheduled, self.say = keep, scheduled, say
        self._writing: Future | None = None
        self._failed = self._stuck = False
        self._allowed = float(SAVE_SECONDS)  # of the save under way
        if keep is not None:
            ignore_orphaned_writes()
            options = self._processes()
            handler = ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=options)
            )
            self._orbax = ocp.AsyncCheckpointer(handler, multiprocessing_options=options)
            self._finisher = ThreadPoolExecutor(1)

    def _processes(self) -> MultiprocessingOptions:
        """Which processes take part in what Orbax does here: all, or each for itself."""
        if not self.alone:
            return MultiprocessingOptions()
        me = jax.process_index()
        return MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'host{me}')

    def steps(self) -> list[int]:
        """All checkpoints there, newest first, damaged ones too."""
        with buckets.answering(self.directory):
            return self.place.steps()

    def damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint, naming the file, or None if every file is as it was written."""
        with buckets.answering(self.directory):
            return self.place.damage(step)

    def newest_intact(self, only_scheduled: bool = False) -> int | None:
        """The step to restore: the newest checkpoint that matches its seal; None if there is no checkpoint.

        Raises:
          UserError: there are checkpoints and all are damaged; the message names the file.
        """
        if self.keep is not None:
            if distributed.is_first():
                self.place.finish()
            distributed.sync('checkpoints named')
        faults = []
        for step in self.steps():
            if only_scheduled and not self.scheduled(step):
                continue
            fault = self.damage(step)
            if fault is None:
                if faults:
                    self.say(f'{faults[0]}: going back to the checkpoint of step {step}')
                return step
            faults.append(fault)
        if not faults:
            return None
        raise UserError(
            f'no intact checkpoint in {self.directory}: {faults[0]}; restore it from a copy, '
            'or delete that directory to start anew'
        )

    def drop_after(self, step: int) -> None:
        """Remove what a resumed run will write again: unfinished checkpoints and those later than `step`.

        Anything whose name is not a checkpoint's (a copy, a note) is left there.

        Raises:
          UserError: they cannot be removed.
        """
        if distributed.is_first():
            try:
                self.place.clear([s for s in self.place.steps() if s <= step])
            except buckets.failures() as error:
                raise UserError(f'cannot clear {self.directory}: {error}') from error

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Write a checkpoint in the background; the arrays are copied before this returns.

        Raises:
          UserError: this or the previous checkpoint cannot be written.
        """
        self.wait()
        if self.alone and not distributed.is_first():
            return
        if self.alone or jax.process_count() == 1:
            # One process has all of what is replicated over the devices. Given the arrays themselves, Orbax cuts each
            # into a part for every device: hundreds of calls, most of the time of a small save.
            items = jax.tree.map(np.array, jax.device_get(items))
        args: dict[str, ocp.args.CheckpointArgs] = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        try:
            partial = self.place.begin(step, size_on_disk(items))
            args['meta'] = ocp.args.JsonSave({**meta, 'step': step})
            self._allowed = SAVE_SECONDS + size_on_disk(items) / SAVE_BYTES_PER_SECOND
            self._orbax.save(partial, args=ocp.args.Composite(**args), force=True)
        except Exception as error:  # whatever Orbax and TensorStore raise when a file system fails them
            raise self._unwritable(step, error) from error
        self._writing = self._finisher.submit(self._finish, step, partial)

    def _finish(self, step: int, partial: Path) -> None:
        """In the background: wait for the files, seal them, give them their final name, drop the oldest."""
        try:
            self._orbax.wait_until_finished()
            if distributed.is_first():
                seal(partial)
                self.place.publish(partial)
                for old in self._superseded(step):
                    self.place.remove(old)
        except Exception as error:  # as in `save`
            raise self._unwritable(step, error) from error

    def _superseded(self, newest: int) -> list[int]:
        steps = self.place.steps()
        scheduled = [step for step in steps if self.scheduled(step)]
        return [step for step in steps if step not in scheduled[: self.keep] and step != newest]

    def _unwritable(self, step: int, error: Exception) -> UserError:
        """The error for a save that failed; what there is of it is removed, which also gives back its space."""
        self._failed = True
        self.place.remove_partial(step)
        if self.alone:  # a bucket that does not answer would not say what it has
            then = 'those before it are kept, the same command continues'
        else:
            kept = self.place.steps()
            then = (
                f'that of step {kept[0]} is kept, the same command continues from it' if kept else 'there is none yet'
            )
        return UserError(
            f'cannot write the checkpoint of step {step} in {self.directory}: {files.reason(error)}; {then}'
        )

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
          UserError: it could not be written.
          Stuck: it has taken so long that it will never end (seen once, inside Orbax).
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                writing.result(timeout=self._allowed)
            except TimeoutError:
                if writing.done():  # an error of the file system that is a TimeoutError itself
                    raise
                self._stuck = True
                raise Stuck(
                    f'a checkpoint in {self.directory} is not on disk after {self._allowed:.0f} s: something holds up '
                    'that file system or this process; the same command continues'
                ) from None

    def restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """The named items in the structure, types and shardings of the trees given.

        Raises:
          UserError: the checkpoint does not hold them in this form.
        """
        restored, options = {}, self._processes()
        with buckets.answering(self.directory):
            directory = self.place.local(step)
        for name, tree in items.items():
            wanted = runtime.template(tree) if self.alone else tree
            try:
                with ocp.StandardCheckpointer(multiprocessing_options=options) as checkpointer:
                    restored[name] = checkpointer.restore(directory / name, wanted)
            except Exception as error:  # Orbax's and TensorStore's parsers raise many kinds
                path = self.directory / str(step) / name
                raise UserError(f'{path} does not hold what this run needs: {files.reason(error)}') from error
            if self.alone:
                restored[name] = jax.tree.map(placed, restored[name], tree)
        return restored

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON values that were saved with a checkpoint."""
        with buckets.answering(self.directory):
            return files.read_json(self.place.local(step) / META)

    def close(self) -> None:
        """Finish the last save and end the background threads; nothing of a failed save is left."""
        if self.keep is None:
            return
        try:
            self.wait()
        finally:
            if not self._stuck:
                self._finisher.shutdown()
                with contextlib.suppress(Exception) if self._failed else contextlib.nullcontext():
                    self._orbax.close()
            if self._failed:  # writes of other files may have outlived the failed one
                self.place.remove_partial('*')
