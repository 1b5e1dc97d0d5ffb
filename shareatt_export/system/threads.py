"""Compute many small things on all cores, also while other programs use them.

A BLAS splits every single matrix product over its threads, which then wait for each other. For small matrices that
gains nothing, and on a busy processor it is up to 40 times slower. So here each thread of this process computes whole
things, with a BLAS that has one thread.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def whole_tasks(n_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads; until the end of the block numpy and scipy compute each matrix product on one thread."""
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(n_threads) as pool:
        yield pool
