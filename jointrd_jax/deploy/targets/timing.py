"""Two functions timed against each other: for targets and reports. Standard library only (see `worker`)."""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

SHORTEST = 0.02  # seconds that one timing takes at least: quick networks are called more often in it


def pin() -> None:
    """Keep this thread, and those that it starts, on one core, where the system can."""
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@contextmanager
def pinned() -> Iterator[None]:
    """`pin`, while the body runs."""
    before = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else None
    pin()
    try:
        yield
    finally:
        if before:
            os.sched_setaffinity(0, before)


class Seconds(NamedTuple):
    """Seconds of one call: CPU time, and wall-clock time."""

    cpu: float
    wall: float


def timed(call: Callable[[], object], calls: int = 1, clock: Callable[[], float] = time.thread_time) -> Seconds:
    """The mean of `calls`; `clock` counts CPU time, of this thread unless it is time.process_time."""
    cpu, wall = clock(), time.perf_counter()
    for _ in range(calls):
        call()
    return Seconds((clock() - cpu) / calls, (time.perf_counter() - wall) / calls)


def in_pairs(
    first: Callable[[], object],
    second: Callable[[], object],
    rounds: int,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, float]:
    """Milliseconds of both, and the ratio first / second over alternating pairs: median and quartiles.

    CPU time is what counts: on a shared machine the wall clock also counts the others' work. `wall_ratio` is the
    median by that clock.
    """
    pairs = []
    with pinned():
        for call in (first, second):
            timed(call)
        calls = math.ceil(SHORTEST / max(min(timed(call, 1, clock).cpu for call in (first, second)), 1e-6))
        for i in range(rounds):
            order = (first, second) if i % 2 else (second, first)
            seconds = {call: timed(call, calls, clock) for call in order}
            pairs.append((seconds[first], seconds[second]))
    low, middle, high = statistics.quantiles([a.cpu / b.cpu for a, b in pairs], n=4, method='inclusive')
    return {
        'first_ms': 1e3 * statistics.median(a.cpu for a, _ in pairs),
        'second_ms': 1e3 * statistics.median(b.cpu for _, b in pairs),
        'ratio': middle,
        'ratio_low': low,
        'ratio_high': high,
        'wall_ratio': statistics.median(a.wall / b.wall for a, b in pairs),
        'pairs': rounds,
    }
