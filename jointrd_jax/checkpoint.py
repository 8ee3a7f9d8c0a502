"""Orbax checkpoints that prove themselves: each is sealed with the SHA-256 of its files.

Layout: DIR/checkpoints/STEP/{student,best,trainer,meta}, one Orbax item each, and SHA256SUMS. A
checkpoint is written beside its final name, sealed and renamed, so it appears at once or not at all;
one that does not match its seal is damaged and is never restored from.
"""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jointrd_jax import files
from jointrd_jax.errors import UserError

SEAL = 'SHA256SUMS'
DIRECTORY = 'checkpoints'


def seal(directory: Path) -> None:
    """Write the digests of all files under a finished checkpoint beside them (sha256sum's format)."""
    lines = [
        f'{files.sha256(path)}  {path.relative_to(directory)}\n'
        for path in sorted(directory.rglob('*'))
        if path.is_file() and path.name != SEAL
    ]
    files.write_atomically(directory / SEAL, ''.join(lines))


def damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file, or None if every file is as it was written."""
    try:
        lines = (directory / SEAL).read_text().splitlines()
        for line in lines:
            digest, name = line.split('  ', 1)
            path = directory / name
            if not path.is_file():
                return f'{path} is missing'
            if files.sha256(path) != digest:
                return f'{path} is not what was written'
    except FileNotFoundError:
        return f'{directory} was not finished (no {SEAL})'
    except (OSError, ValueError) as error:
        return f'{directory / SEAL} cannot be read ({error})'
    return None if lines else f'{directory / SEAL} is empty'


def remove(directory: Path) -> None:
    """Delete a checkpoint, its seal first, so that what is left of an interrupted deletion is no checkpoint."""
    (directory / SEAL).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one run directory, numbered by step.

    Args:
      run: the run directory.
      keep: how many of the newest to keep; None only reads.
    """

    def __init__(self, run: Path, keep: int | None = None):
        logging.getLogger('absl').setLevel(logging.CRITICAL)  # Orbax narrates; errors reach us as exceptions
        self.directory = Path(run).absolute() / DIRECTORY
        self.say: Callable[[str], None] = lambda message: None
        self.keep = keep
        self._writing: Future | None = None
        if keep is not None:
            self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
            self._finisher = ThreadPoolExecutor(1)

    def steps(self) -> list[int]:
        """All checkpoints there, newest first, damaged ones too."""
        if not self.directory.is_dir():
            return []
        return sorted((int(p.name) for p in self.directory.iterdir() if p.name.isdigit()), reverse=True)

    def newest_intact(self) -> int | None:
        """The step to restore: the newest checkpoint that matches its seal; None if there is no checkpoint.

        Raises:
          UserError: there are checkpoints and all are damaged; the message names the file.
        """
        faults = []
        for step in self.steps():
            fault = damage(self.directory / str(step))
            if fault is None:
                if faults:
                    self.say(f'{faults[0]}: going back to the checkpoint of step {step}')
                return step
            faults.append(fault)
        if not faults or all(SEAL in fault and 'not finished' in fault for fault in faults):
            return None
        raise UserError(f'no intact checkpoint in {self.directory}: {faults[0]}')

    def drop_after(self, step: int) -> None:
        """Remove what a resumed run will write again: unfinished checkpoints and those later than `step`."""
        if jax.process_index() == 0 and self.directory.is_dir():
            for path in self.directory.iterdir():
                if not path.name.isdigit() or int(path.name) > step:
                    remove(path)

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Write a checkpoint in the background; the arrays are copied before this returns.

        Raises:
          UserError: this or the previous checkpoint cannot be written.
        """
        self.wait()
        partial = self.directory / f'{step}.partial'
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._orbax.save(partial, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **args), force=True)
        except (OSError, ValueError) as error:
            raise self._unwritable(step, error) from error
        self._writing = self._finisher.submit(self._finish, step, partial)

    def _finish(self, step: int, partial: Path) -> None:
        """In the background: wait for the files, seal them, give them their final name, drop the oldest."""
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                seal(partial)
                remove(self.directory / str(step))
                partial.rename(self.directory / str(step))
                for old in self.steps()[self.keep :]:
                    remove(self.directory / str(old))
        except (OSError, ValueError) as error:
            raise self._unwritable(step, error) from error

    def _unwritable(self, step: int, error: Exception) -> UserError:
        return UserError(f'cannot write the checkpoint of step {step} in {self.directory}: {error}')

    def wait(self) -> None:
        """Until the last save is on disk.

        Raises:
          UserError: it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """The named items in the structure, types and shardings of the trees given."""
        restored = {}
        for name, tree in items.items():
            with ocp.StandardCheckpointer() as checkpointer:
                restored[name] = checkpointer.restore(self.directory / str(step) / name, tree)
        return restored

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON values kept with a checkpoint."""
        return files.read_json(self.directory / str(step) / 'meta' / 'metadata')

    def close(self) -> None:
        """Finish the last save and end the background threads."""
        if self.keep is not None:
            try:
                self.wait()
            finally:
                self._finisher.shutdown()
                self._orbax.close()
