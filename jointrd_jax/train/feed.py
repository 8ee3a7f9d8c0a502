"""Batches made and put on the devices by a thread, ahead of the steps that take them; a bound on steps in flight."""

import collections
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

import jax

AHEAD = 2  # batches ready on the devices beside those in flight: one is taken while the next is being moved
IN_FLIGHT = 2  # calls of the device that Python may be ahead of it
LOOK_SECONDS = 0.05  # between looks at whether a stop was asked for, while the input is waited for
LATE_SECONDS = 1e-3  # a step that waits longer than this for its batch counts as late

T = TypeVar('T')


class Feed(Generic[T]):
    """What `items` yields, made in a thread of its own, at most `ahead` items before they are taken.

    Args:
      items: makes the batches and puts them on the devices; its generator is closed by `close`, in that thread.
      ahead: how many items wait at most.

    Attributes:
      taken: how many items were taken.
      late: how many of them had to be waited for; the first, which cannot be made ahead, does not count.
    """

    def __init__(self, items: Iterable[T], ahead: int = AHEAD):
        self.taken = self.late = 0
        self._ready: queue.Queue = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(iter(items),), name='feed', daemon=True)
        self._thread.start()

    def _fill(self, items: Iterator[T]) -> None:
        end: tuple[Any, BaseException | None] = (None, StopIteration())
        try:
            while not self._closed.is_set():
                self._put((next(items), None))
        except StopIteration:
            pass
        except BaseException as error:  # of any kind: `take` raises it
            end = (None, error)
        finally:
            if isinstance(items, Generator):
                items.close()
        self._put(end)

    def _put(self, entry: tuple[Any, BaseException | None]) -> None:
        while not self._closed.is_set():
            try:
                return self._ready.put(entry, timeout=LOOK_SECONDS)
            except queue.Full:
                continue

    def take(self, stop_asked: Callable[[], bool] = lambda: False) -> T | None:
        """The next item; None if there is none yet and a stop is asked for.

        Raises:
          StopIteration: there are no more.
          Exception: the one that `items` raised.
        """
        began = time.monotonic()
        while True:
            try:
                item, error = self._ready.get(timeout=LOOK_SECONDS)
                break
            except queue.Empty:
                if stop_asked():
                    return None
        if error is not None:
            raise error
        self.late += bool(self.taken) and time.monotonic() - began > LATE_SECONDS
        self.taken += 1
        return item

    def close(self) -> None:
        """End the thread and the items' generator; what was ready is let go."""
        self._closed.set()
        self._thread.join()


class InFlight:
    """Bounds how far Python is ahead of the device, so that batches cannot fill its memory and a stop comes soon."""

    def __init__(self, most: int = IN_FLIGHT):
        self.most, self._results = most, collections.deque()

    def add(self, result: Any) -> None:
        """Note a call's result (any array of it that is not donated), and wait for the oldest beyond the bound."""
        self._results.append(result)
        while len(self._results) > self.most:
            jax.block_until_ready(self._results.popleft())
