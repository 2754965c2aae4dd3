"""How many threads the small matrix products of a stream may take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Inside, or in a function so decorated, numpy's and scipy's BLAS keep to one thread.

    The products of a batch are too small to share out: more threads spend up to twice the CPU on
    waiting for each other, and take it from the server and the trainer.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield
