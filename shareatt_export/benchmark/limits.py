"""What a machine can do at most: how fast its threads read memory, and multiply and add numbers of 32 bits.

Both are measured with numpy, by dot products of long vectors and by products of matrices in the BLAS.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..system.threads import whole_tasks

READ_BYTES = 512 << 20  # more than caches hold
MATRIX = 1024  # rows and columns: the product is bound by operations
REPEATS = 7  # the fastest counts


@dataclass(frozen=True)
class Limits:
    """What a machine can do at most with the threads of a benchmark.

    Attributes:
        read: Bytes that it reads from memory per second.
        flops: Floating-point operations per second in products of matrices of 32-bit numbers.
    """

    read: float
    flops: float


def measure_limits(n_threads: int) -> Limits:
    """Measure the limits. With one thread, the time is that of the processor, as for the settings."""
    n = READ_BYTES // n_threads // 4
    arrays = [np.ones(n, np.float32) for _ in range(n_threads)]
    matrices = [np.ones((MATRIX, MATRIX), np.float32) for _ in range(n_threads)]
    return Limits(
        read=n_threads * n * 4 / _fastest(lambda i: np.dot(arrays[i], arrays[i]), n_threads),
        flops=n_threads * 2 * MATRIX**3 / _fastest(lambda i: matrices[i] @ matrices[i], n_threads),
    )


def _fastest(run: Callable[[int], object], n_threads: int) -> float:
    """Return the least seconds in which all threads have called `run` with their number."""
    now = time.thread_time if n_threads == 1 else time.perf_counter
    seconds = []
    with whole_tasks(n_threads) as pool:
        for _ in range(REPEATS):
            start = now()
            if n_threads == 1:
                run(0)
            else:
                list(pool.map(run, range(n_threads)))
            seconds.append(now() - start)
    return min(seconds)
