"""Several hosts as one: JAX's own distributed runtime, and what must hold between the processes.

Every process runs the same program on its share of every batch. Process 0 writes logs and results;
checkpoints are written by all, so the workdir must be one that all of them see.
"""

import contextlib
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jointrd_jax.errors import UserError
from jointrd_jax.system import signals

AUTO = 'auto'
# Fields that may differ between hosts: places and local resources, which do not change what is computed.
MAY_DIFFER = ('dataset.data_dir', 'dataset.workers', 'teacher.path')
CONFIG_BYTES = 1 << 16
LOST = ('Gloo', 'NCCL', 'heartbeat', 'Connection')  # in what JAX says of a process that is gone
GRACE_SECONDS = 3
STOP_KEY = 'jointrd_jax/stop'
LEAD = 6  # calls; Python is at most `train.feed.IN_FLIGHT` ahead of its device, and one more is being made
JOIN_SECONDS = 120  # for process 0 to be there
ADDRESS = re.compile(r'(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):(\d{1,5})')  # HOST:PORT, [IPV6]:PORT


_calls = 0  # see `stop_asked`
_stop_at: int | None = None


def address(coordinator: str) -> tuple[str, int]:
    """Host and port of process 0.

    Raises:
      UserError: it is not HOST:PORT.
    """
    match = ADDRESS.fullmatch(coordinator)
    if not match or not 0 < int(match[2]) < 1 << 16:
        raise UserError(
            f'--coordinator={coordinator} is not HOST:PORT, as in --coordinator=10.0.0.1:1234: the address of '
            'process 0, without a scheme, and a port from 1 to 65535'
        )
    return match[1].strip('[]'), int(match[2])


def wait_for(host: str, port: int) -> None:
    """Wait until process 0 listens there: JAX's own client would wait in silence, and end the process where it fails.

    Raises:
      UserError: it does not within JOIN_SECONDS.
    """
    until, told = time.monotonic() + JOIN_SECONDS, False
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f'process 0 is not at --coordinator={host}:{port} after {JOIN_SECONDS} s '
                    f'({error.strerror or error}); is it started, and its port open to this host?'
                ) from error
            if not told:
                print(f'waiting for process 0 at {host}:{port}, at most {JOIN_SECONDS} s', file=sys.stderr, flush=True)
                told = True
            time.sleep(0.5)


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Join the other processes; must come before anything else asks JAX for its devices.

    Args:
      coordinator: HOST:PORT of process 0; 'auto' where JAX can tell by itself (SLURM, TPU, GKE, Open MPI);
        None for a run of one process.

    Raises:
      UserError: arguments that do not fit together, or processes that cannot be reached.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise UserError('--num_processes and --process_id need --coordinator=HOST:PORT, the address of process 0')
        return
    if coordinator == AUTO:
        arguments = {}
    elif num_processes is None or process_id is None:
        raise UserError(f'--coordinator={coordinator} needs --num_processes and --process_id too')
    elif not 0 <= process_id < num_processes:
        raise UserError(f'--process_id={process_id} is not between 0 and --num_processes={num_processes} minus 1')
    else:
        host, port = address(coordinator)
        if process_id:
            wait_for(host, port)
        arguments = {
            'coordinator_address': coordinator, 'num_processes': num_processes, 'process_id': process_id,
        }  # fmt: skip
    # JAX would take SIGTERM for itself; `signals` and the trainer stop all hosts at one step, with a checkpoint.
    jax.config.update('jax_enable_preemption_service', False)
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise UserError(f'the processes could not be joined (--coordinator={coordinator}): {error}') from error


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """For a body that waits for other processes: turn the error after the end of one of them into one line.

    Raises:
      UserError: JAX lost the connection to another process. (Where it notices by its heartbeat alone, as on GPUs,
        it ends this process itself, within about 100 s.)
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not any(word in str(error) for word in LOST):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            'another process of this run has ended (its log says why); start the same command again to continue '
            f'({reason})'
        ) from error


def leave(status: int) -> None:
    """End a process that failed, if it is one of several; returns otherwise.

    At its exit JAX waits for all the others, which may be waiting for this one in a step. Process 0 keeps them
    together, so it gives them a moment to say what they have to say.
    """
    if jax.distributed.is_initialized():
        if is_first():
            time.sleep(GRACE_SECONDS)
        signals.end(status)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def sync(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agree(config: dict[str, Any], what: str = 'config') -> None:
    """Check that every process has the same (flat) config, or other values, which `what` names in the message.

    Raises:
      UserError: on every process, with the fields and values that differ.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(
        {name: value for name, value in config.items() if name not in MAY_DIFFER}, sort_keys=True
    ).encode()
    padded = np.frombuffer(text.ljust(CONFIG_BYTES), np.uint8)
    configs = [json.loads(bytes(row).decode()) for row in multihost_utils.process_allgather(padded)]
    for number, other in enumerate(configs[1:], 1):
        differing = [
            f'{name}: {configs[0].get(name)!r} on process 0, {other.get(name)!r} on process {number}'
            for name in sorted(configs[0].keys() | other.keys())
            if configs[0].get(name) != other.get(name)
        ]
        if differing:
            raise UserError(f'the hosts disagree on the {what} ({"; ".join(differing)}); start all of them alike')


def alone_and_stopping() -> bool:
    """Whether a signal came and this process is the only one."""
    return signals.requested() is not None and jax.process_count() == 1


def stop_asked() -> bool:
    """Whether to stop here: a signal came. Asked before every call of the devices, by all hosts in the same order.

    Several hosts stop at the same call. The one that got the signal writes to JAX's store of keys and values at which
    call that will be: so far ahead that no other host can be there, since all take part in every call and none is more
    than `LEAD` calls ahead of the slowest.
    """
    global _calls, _stop_at
    if jax.process_count() == 1:
        return signals.requested() is not None
    from jax._src.distributed import global_state  # the client has no public name

    client: Any = global_state.client
    _calls += 1
    if _stop_at is None and signals.requested() is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another host was first
            client.key_value_set(STOP_KEY, str(_calls + LEAD))
    if _stop_at is None:
        try:
            _stop_at = int(client.key_value_try_get(STOP_KEY))
        except jax.errors.JaxRuntimeError:  # nobody has asked
            return False
    return _calls >= _stop_at


def only_first(context: contextlib.AbstractContextManager) -> contextlib.AbstractContextManager:
    """`context` on process 0, nothing on the others."""
    return context if is_first() else contextlib.nullcontext()
