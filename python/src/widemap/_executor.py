"""`Executor`: a `concurrent.futures.Executor` over the interpreters of a pool."""

from __future__ import annotations

import atexit
import collections
import concurrent.futures
import os
import threading
import weakref
from concurrent.futures import Future, InvalidStateError
from concurrent.futures.process import _RemoteTraceback
from typing import Any, Callable, Iterable, Iterator

from ._calls import Call, most_at_once
from ._errors import PoolBroken, PoolTerminated
from ._jobs import make
from ._pool import Functions, Options
from ._runner_text import APPLY

# Futures that are on their way for each slot: those behind them can be cancelled.
FUTURES_PER_SLOT = 4
# Of short tasks, as many as take so long.
QUEUE_NS = 20_000_000


class BrokenExecutor(concurrent.futures.BrokenExecutor):
    """The process that gives out the work has ended."""


class Executor(concurrent.futures.Executor):
    """Calls functions in the interpreters of this machine, or of all machines, and gives futures of their results.

    A task that ends its interpreter fails with `widemap.ItemCrashed`, alone: the executor goes on.

    Args:
        max_workers: how many interpreters on this machine; all processors if not given.
        initializer: called once in each interpreter, with `initargs`.
        options: those of `widemap.Pool`: `workers`, `key`, `require`, `retries`, `timeout`, `python`, `files`.

    Examples:
        >>> from widemap import Executor
        >>> with Executor(2) as executor:
        ...     executor.submit(pow, 2, 10).result()
        ...     list(executor.map(abs, [-1, 2]))
        1024
        [1, 2]
    """

    def __init__(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
        **options: Any,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        self._lock = threading.RLock()
        self._waiting = collections.deque()
        self._running = set()
        self._nanoseconds = None
        self._is_shut = False
        self._functions = Functions()
        self._engine = engine = make(Options(max_workers, initializer, initargs, **options), _RemoteTraceback)
        self._finalizer = weakref.finalize(self, engine.terminate)
        OPEN.add(self)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future of `fn(*args, **kwargs)`."""
        future = Future()
        with self._lock:
            if self._is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            error = self._engine.error()
            if isinstance(error, PoolBroken):
                raise BrokenExecutor(str(error)) from error
            self._waiting.append((future, self._functions.pickled(fn), (args, kwargs)))
            failed = self._begin()
        failed()
        return future

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """An iterator of what `fn` returns for each tuple of values, in order."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        return super().map(fn, *iterables, timeout=timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more futures. Those there are are completed, or cancelled if they have not begun."""
        with self._lock:
            self._is_shut = True
            if cancel_futures:
                for future, *_ in self._waiting:
                    future.cancel()
                    future.set_running_or_notify_cancel()
                self._waiting.clear()
            self._close_if_done()
        if wait:
            self._engine.join()

    def _close_if_done(self):
        if self._is_shut and not self._waiting and not self._running:
            self._engine.close()

    def _begin(self):
        """Hands over as many as may be on their way. What comes back ends those that cannot be, outside of the lock."""
        failed = []
        slots = self._engine.slots
        most = FUTURES_PER_SLOT * slots
        if self._nanoseconds is not None:
            most = max(most, int(slots * QUEUE_NS / self._nanoseconds))
        most = most_at_once(most, self._nanoseconds, self._engine.options.is_local)
        while self._waiting and len(self._running) < most:
            future, function, value = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            self._running.add(future)
            done = Done(self, future)
            call = Call(APPLY, function, (value,), done.deliver, done.end, total=1, batch=1)
            done.call = call
            try:
                self._engine.add(call)
            except Exception as error:
                self._running.discard(future)
                failed.append((future, as_broken(error)))
        return lambda: [ended(future.set_exception, error) for future, error in failed]

    def _over(self, future, call):
        with self._lock:
            self._running.discard(future)
            if call.nanoseconds is not None:
                cost = call.nanoseconds
                before = self._nanoseconds
                self._nanoseconds = cost if before is None else (7 * before + cost) / 8
            failed = self._begin()
            self._close_if_done()
        failed()


# Those that were not shut down.
OPEN = weakref.WeakSet()


def finish():
    """The program ends: what was submitted is done before."""
    for executor in list(OPEN):
        executor.shutdown()


if hasattr(os, "register_at_fork"):
    # What was submitted is the parent's.
    os.register_at_fork(after_in_child=OPEN.clear)

# Before threads are waited for, as those of concurrent.futures are.
getattr(threading, "_register_atexit", atexit.register)(finish)


class Done:
    """What is done once a future's call has ended."""

    def __init__(self, executor, future):
        self.executor = executor
        self.future = future
        self.call = None

    def deliver(self, first, values, errors):
        """The call's result."""
        self.executor._over(self.future, self.call)
        if errors:
            ended(self.future.set_exception, errors[0])
        else:
            ended(self.future.set_result, values[0])

    def end(self, count, error):
        """The call will have no result, if there is an error."""
        if error is None:
            return
        self.executor._over(self.future, self.call)
        ended(self.future.set_exception, as_broken(error))


def ended(set_outcome, outcome):
    """Ends a future, unless it has ended."""
    try:
        set_outcome(outcome)
    except InvalidStateError:
        pass


def as_broken(error):
    """What ended everything, as executors tell it."""
    if not isinstance(error, (PoolBroken, PoolTerminated)):
        return error
    broken = BrokenExecutor(str(error))
    broken.__cause__ = error
    return broken
