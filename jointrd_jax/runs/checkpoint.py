"""Orbax checkpoints that prove themselves: each is sealed with the SHA-256 of its files.

Layout: DIR/checkpoints/STEP/{student,best,trainer,meta}, one Orbax item each, and SHA256SUMS. A
checkpoint is written beside its final name, sealed and renamed, so it appears at once or not at all;
one that does not match its seal is damaged and is never restored from. Deleting goes the same way
back: renamed first, so a directory named by a step is whole unless something damaged it.
"""

import contextlib
import errno
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jointrd_jax.errors import Stuck, UserError
from jointrd_jax.system import distributed, files

SEAL = 'SHA256SUMS'
DIRECTORY = 'checkpoints'
META = Path('meta') / 'metadata'
SAVE_SECONDS, SAVE_BYTES_PER_SECOND = 300, 10e6  # a save that takes longer than both allow is stuck
PARTIAL, REMOVING, PROBE = '.partial', '.removing', '.probe'
OURS = re.compile(r'\d+(\.partial.*)?(\.removing)?|\.probe.*')


def contents(directory: Path) -> set[str]:
    """The relative names of all that a seal speaks for: everything in `directory` but folders and the seal."""
    return {
        str(path.relative_to(directory))
        for path in directory.rglob('*')
        if path.is_symlink() or not path.is_dir()
        if path != directory / SEAL
    }


def seal(directory: Path) -> None:
    """Write the digests of all files under a finished checkpoint beside them (sha256sum's format), all on disk."""
    lines = []
    for name in sorted(contents(directory)):
        files.sync(directory / name)
        lines.append(f'{files.sha256(directory / name)}  {name}\n')
    files.write_atomically(directory / SEAL, ''.join(lines))


def damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file, or None if every file is as it was written.

    Only files inside the checkpoint are opened, whatever its seal or links in it name.
    """
    try:
        if not (directory / SEAL).is_file():
            return f'{directory / SEAL} is missing'
        sealed = {}
        text = files.read_text(directory / SEAL)
        for line in text.splitlines():
            match = re.fullmatch(r'([0-9a-f]{64})  (.+)', line)
            if not match:
                return f'{directory / SEAL} is damaged'
            sealed[match[2]] = match[1]
        there = contents(directory)
        if not sealed or text != ''.join(f'{digest}  {name}\n' for name, digest in sealed.items()):
            return f'{directory / SEAL} is damaged'
        for name in sorted(there ^ sealed.keys()):
            return f'{directory / name} is ' + ('missing' if name in sealed else f'not in its {SEAL}')
        for name, digest in sealed.items():
            path = directory / name
            if path.is_symlink() or not path.is_file():
                return f'{path} is not a regular file'
            if files.sha256(path) != digest:
                return f'{path} is not what was written'
        step = files.read_json(directory / META).get('step')
        if str(step) != directory.name.removesuffix(PARTIAL):
            return f'{directory} holds another step, {step}'
    except UserError as error:
        return str(error)
    except (OSError, ValueError, AttributeError) as error:
        return f'{directory} cannot be read ({error})'
    return None


def remove(directory: Path) -> None:
    """Delete a checkpoint; what is left when that is interrupted does not look like one."""
    if not directory.exists():
        return
    going = directory.with_name(directory.name + REMOVING)
    shutil.rmtree(going, ignore_errors=True)
    directory.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def size_on_disk(items: dict[str, Any]) -> int:
    """Bytes that a checkpoint of these trees takes at most: the arrays uncompressed, and what Orbax notes per array."""
    leaves = jax.tree.leaves(items)
    return sum(leaf.nbytes for leaf in leaves) + 2048 * len(leaves) + 2**16


def require_room(directory: Path, size: int) -> None:
    """Raises OSError if `directory` cannot be written to or its file system has less than `size` bytes left.

    Asked before writing: when Orbax fails half-way, its other writes go on, leave files and complaints
    behind, and hold up the end of the process for minutes.
    """
    tempfile.TemporaryDirectory(prefix=PROBE, dir=directory).cleanup()
    if shutil.disk_usage(directory).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def ignore_orphaned_writes() -> None:
    """When one file of a checkpoint cannot be written, TensorStore's writes of others fail too, or end after the
    event loop that asked for them; each would print a traceback below the one line that says what is wrong."""
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'):
            previous(unraisable)

    if getattr(previous, '__qualname__', '') != hook.__qualname__:
        sys.unraisablehook = hook


class Checkpoints:
    """The checkpoints of one run directory, numbered by step.

    Args:
      run: the run directory.
      keep: how many of the newest scheduled ones to keep; None only reads.
      scheduled: which steps the config asks for. Others (written when the run was told to stop) live
        only until the next one, so that they change nothing about what is kept and found later.
      say: tells the user that a damaged checkpoint was passed over.
    """

    def __init__(
        self,
        run: Path,
        keep: int | None = None,
        scheduled: Callable[[int], bool] = lambda step: True,
        say: Callable[[str], None] = lambda message: None,
    ):
        logging.getLogger('absl').setLevel(logging.CRITICAL)  # Orbax narrates; errors reach us as exceptions
        self.directory = Path(run).absolute() / DIRECTORY
        self.keep, self.scheduled, self.say = keep, scheduled, say
        self._writing: Future | None = None
        self._failed = self._stuck = False
        self._allowed = float(SAVE_SECONDS)  # of the save under way
        if keep is not None:
            ignore_orphaned_writes()
            self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
            self._finisher = ThreadPoolExecutor(1)

    def steps(self) -> list[int]:
        """All checkpoints there, newest first, damaged ones too."""
        if not self.directory.is_dir():
            return []
        names = (p.name for p in self.directory.iterdir())
        return sorted((int(name) for name in names if re.fullmatch(r'0|[1-9][0-9]{0,17}', name)), reverse=True)

    def newest_intact(self, only_scheduled: bool = False) -> int | None:
        """The step to restore: the newest checkpoint that matches its seal; None if there is no checkpoint.

        Raises:
          UserError: there are checkpoints and all are damaged; the message names the file.
        """
        if self.keep is not None:
            for partial in self.directory.glob(f'*{PARTIAL}') if distributed.is_first() else ():
                if not partial.with_name(partial.name.removesuffix(PARTIAL)).exists() and damage(partial) is None:
                    self._give_name(partial)  # its process died between sealing and renaming
            distributed.sync('checkpoints named')
        faults = []
        for step in self.steps():
            if only_scheduled and not self.scheduled(step):
                continue
            fault = damage(self.directory / str(step))
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

        What has another name than a checkpoint's (a copy, a note) is somebody else's and stays.

        Raises:
          UserError: they cannot be removed.
        """
        if distributed.is_first() and self.directory.is_dir():
            steps = {str(s) for s in self.steps() if s <= step}
            try:
                for path in self.directory.iterdir():
                    if path.name not in steps and OURS.fullmatch(path.name) and path.is_dir():
                        shutil.rmtree(path) if path.name.endswith(REMOVING) else remove(path)
            except OSError as error:
                raise UserError(f'cannot clear {self.directory}: {error}') from error

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Write a checkpoint in the background; the arrays are copied before this returns.

        Raises:
          UserError: this or the previous checkpoint cannot be written.
        """
        self.wait()
        partial = self.directory / f'{step}{PARTIAL}'
        args: dict[str, ocp.args.CheckpointArgs] = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            require_room(self.directory, size_on_disk(items))
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
                remove(self.directory / str(step))
                self._give_name(partial)
                for old in self._superseded(step):
                    remove(self.directory / str(old))
        except Exception as error:  # as in `save`
            raise self._unwritable(step, error) from error

    def _give_name(self, partial: Path) -> None:
        partial.rename(partial.with_name(partial.name.removesuffix(PARTIAL)))
        files.sync(self.directory)

    def _superseded(self, newest: int) -> list[int]:
        scheduled = [step for step in self.steps() if self.scheduled(step)]
        return [step for step in self.steps() if step not in scheduled[: self.keep] and step != newest]

    def _unwritable(self, step: int, error: Exception) -> UserError:
        """The error for a save that failed; what there is of it is removed, which also gives back its space."""
        self._failed = True
        self._remove_partial(step)
        kept = self.steps()
        return UserError(
            f'cannot write the checkpoint of step {step} in {self.directory}: {files.reason(error)}; '
            + (f'that of step {kept[0]} is kept, the same command continues from it' if kept else 'there is none yet')
        )

    def wait(self) -> None:
        """Until the last save is on disk.

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
        restored = {}
        for name, tree in items.items():
            path = self.directory / str(step) / name
            try:
                with ocp.StandardCheckpointer() as checkpointer:
                    restored[name] = checkpointer.restore(path, tree)
            except Exception as error:  # Orbax's and TensorStore's parsers raise many kinds
                raise UserError(f'{path} does not hold what this run needs: {files.reason(error)}') from error
        return restored

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON values kept with a checkpoint."""
        return files.read_json(self.directory / str(step) / META)

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
                self._remove_partial('*')

    def _remove_partial(self, step: int | str) -> None:
        for left in self.directory.glob(f'{step}{PARTIAL}*'):
            shutil.rmtree(left, ignore_errors=True)
