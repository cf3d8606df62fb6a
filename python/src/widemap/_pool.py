"""`Pool`: `multiprocessing.Pool`, on every machine."""

from __future__ import annotations

import collections
import os
import sys
import threading
import traceback
import types
import warnings
import weakref
from multiprocessing import TimeoutError
from multiprocessing.pool import CLOSE, RUN, TERMINATE
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

from ._calls import FIRST_BATCH_NS, Call
from ._jobs import make
from ._pickle import dumps
from ._progress import Progress
from ._runner_text import APPLY, MAP, STARMAP

# How many values of `imap` are on their way at the least.
WINDOW_VALUES = 64


class Options:
    """What a pool is made with, as options of `widemap map`."""

    def __init__(
        self,
        processes=None,
        initializer=None,
        initargs=(),
        maxtasksperchild=None,
        workers=None,
        key=None,
        require=None,
        retries=0,
        timeout=None,
        python=None,
        files=(),
        insecure=False,
        coordinator=None,
    ):
        if processes is not None and processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if retries < 0:
            raise ValueError("retries must not be negative")
        if isinstance(workers, str):
            workers = [workers]
        if coordinator is not None and (workers or processes is not None):
            raise ValueError("a coordinator has its workers: leave workers= and processes= out")
        self.workers = list(workers or ())
        is_named = bool(self.workers) or processes is not None or coordinator is not None
        # Somewhere else only where that was said, here or in the environment.
        self.coordinator = coordinator if is_named else os.environ.get("WIDEMAP_COORDINATOR")
        self.is_local = not self.workers and not self.coordinator and (processes is not None or not is_configured())
        self.processes = processes
        self.initializer = initializer
        self.initargs = initargs
        self.maxtasksperchild = maxtasksperchild
        self.key = key
        self.require = dict(require or {})
        self.retries = retries
        self.timeout = timeout
        self.python = python
        self.files = [os.fspath(path) for path in files]
        self.insecure = insecure
        self.slots = processes or cpus()
        # Of batches that share an item nobody could tell which is too late, or counts for an interpreter's replacement.
        self.goes_singly = timeout is not None or maxtasksperchild is not None

    def flags(self):
        """The options of `widemap map`."""
        flags = ["--quiet", "--no-progress", "--retries", "0", "--max-output", "1G"]
        if self.coordinator:
            flags += ["--coordinator", self.coordinator]
        else:
            # How much goes at a time was decided here, by what it costs; the next one waits where it will run.
            flags += ["--chunk", "1", "--chunk-target", "%dms" % (2 * FIRST_BATCH_NS // 1_000_000)]
        if self.is_local:
            flags += ["--local", str(self.slots), "--no-mdns"]
        elif self.processes is not None:
            flags += ["--local", str(self.processes)]
        for worker in self.workers:
            flags += ["--worker", worker]
        if self.key is not None:
            flags += ["--key", os.fspath(self.key)]
        if self.insecure:
            flags += ["--insecure"]
        for label, value in self.require.items():
            flags += ["--require", "%s=%s" % (label, value)]
        if self.timeout is not None:
            flags += ["--timeout", "%dms" % max(1, round(self.timeout * 1000))]
        if self.maxtasksperchild is not None:
            flags += ["--recycle", str(self.maxtasksperchild)]
        python = self.python or (sys.executable if self.is_local else None)
        if python:
            flags += ["--python-bin", os.fspath(python)]
        for path in self.files:
            flags += ["--file", path]
        return flags


def is_configured():
    """Whether the environment says where workers are."""
    names = ("WIDEMAP_WORKERS", "WIDEMAP_WORKERS_FILE", "WIDEMAP_DNS", "WIDEMAP_LOCAL")
    return any(os.environ.get(name) for name in names)


def cpus():
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


class AsyncResult:
    """What will come of `apply_async`, `map_async` or `starmap_async`."""

    def __init__(self, count, callback, error_callback):
        self._event = threading.Event()
        # Whoever has the result only, has the pool until then.
        self._pool = None
        self._success = True
        self._value = [None] * count if count is not None else None
        self._missing = count
        self._callback = callback
        self._error_callback = error_callback
        self._lock = threading.Lock()

    def ready(self) -> bool:
        """Whether it has ended, well or not."""
        return self._event.is_set()

    def successful(self) -> bool:
        """Whether it has ended well.

        Raises:
            ValueError: if it has not ended.
        """
        if not self.ready():
            raise ValueError("{0!r} not ready".format(self))
        return self._success

    def wait(self, timeout: float | None = None) -> None:
        """Waits for the end, so many seconds at the most."""
        self._event.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The result.

        Raises:
            multiprocessing.TimeoutError: if it is not there after so many seconds.
            Exception: what the function has raised.
        """
        self._event.wait(timeout)
        if not self.ready():
            raise TimeoutError
        if self._success:
            return self._value
        raise self._value

    # The engine's side.

    def _finish(self):
        callback = self._callback if self._success else self._error_callback
        self._callback = self._error_callback = None
        try:
            if callback is not None:
                callback(self._value)
        except BaseException:
            # One that fails is no reason to end what others wait for.
            traceback.print_exc()
        finally:
            self._event.set()
            self._pool = None

    def _break(self, error):
        with self._lock:
            if self._event.is_set() or self._missing == 0:
                return
            self._missing = 0
            self._success, self._value = False, error
        self._finish()


class ApplyResult(AsyncResult):
    """The result of one call."""

    def __init__(self, callback, error_callback):
        super().__init__(None, callback, error_callback)
        self._missing = 1

    def _deliver(self, first, values, errors):
        with self._lock:
            if self._missing == 0:
                return
            self._missing = 0
            self._success = not errors
            self._value = errors[0] if errors else values[0]
        self._finish()

    def _end(self, count, error):
        if error is not None:
            self._break(error)


class MapResult(AsyncResult):
    """The results of many, in the order of what they are of."""

    def __init__(self, count, callback, error_callback, returns, progress):
        super().__init__(count, callback, error_callback)
        self._first_error = None
        self._returns = returns
        self._progress = progress

    def _deliver(self, first, values, errors):
        with self._lock:
            if not self._missing:
                return
            if errors:
                if self._returns:
                    for index, error in errors.items():
                        values[index] = error
                elif self._first_error is None:
                    self._first_error = errors[min(errors)]
            self._value[first : first + len(values)] = values
            self._missing -= len(values)
            is_over = self._missing == 0
            if is_over and self._first_error is not None:
                self._success, self._value = False, self._first_error
        if self._progress is not None:
            self._progress.add(len(values), len(errors))
        if is_over:
            self._finish()

    def _end(self, count, error):
        if error is not None:
            self._break(error)

    def _finish(self):
        if self._progress is not None:
            self._progress.close()
        super()._finish()


class IMapIterator:
    """The results of `imap`, in order, as they are asked for."""

    def __init__(self, progress=None):
        self._changed = threading.Condition()
        self._ready = collections.deque()
        self._early = {}
        self._next = 0
        self._given = 0
        self._count = None
        self._error = None
        self._returns = False
        self._progress = progress
        self._pool = None
        self.wake = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def next(self, timeout: float | None = None) -> Any:
        """The next result.

        Raises:
            StopIteration: after the last one.
            multiprocessing.TimeoutError: if it is not there after so many seconds.
            Exception: what the function has raised for it. The next call goes on behind it.
        """
        with self._changed:
            if not self._ready and not self._is_over():
                self._changed.wait_for(lambda: self._ready or self._is_over(), timeout)
                if not self._ready and not self._is_over():
                    raise TimeoutError
            if not self._ready:
                self._pool = None
                if self._progress is not None:
                    self._progress.close()
                if self._error is not None:
                    error, self._error = self._error, None
                    self._count = self._given
                    raise error
                raise StopIteration
            value, error = self._ready.popleft()
            self._given += 1
            is_low = len(self._ready) == 0 or self._given % 64 == 0
        if is_low:
            self.wake()
        if error is not None and not self._returns:
            raise error
        return value if error is None else error

    __next__ = next

    def _is_over(self):
        return self._count is not None and self._given >= self._count

    def _deliver(self, first, values, errors):
        with self._changed:
            for index, value in enumerate(values):
                self._put(first + index, (value, errors.get(index)))
            self._changed.notify_all()
        if self._progress is not None:
            self._progress.add(len(values), len(errors))

    def _put(self, number, result):
        self._early[number] = result
        while self._next in self._early:
            self._ready.append(self._early.pop(self._next))
            self._next += 1

    def _end(self, count, error):
        with self._changed:
            if count is None:
                # Nothing more comes, of what was asked for either.
                count = self._given + len(self._ready)
            self._count, self._error = count, error
            self._changed.notify_all()


class IMapUnorderedIterator(IMapIterator):
    """The results of `imap_unordered`, as they come."""

    def _put(self, number, result):
        self._ready.append(result)


class Pool:
    """A pool of interpreters on this machine, or on all of them, that functions are called in.

    It is used as `multiprocessing.Pool` is, and takes what that takes. Without `workers` its processes are on this
    machine.

    Args:
        processes: how many interpreters on this machine; all processors if not given.
        initializer: called once in each interpreter, with `initargs`, before anything else.
        maxtasksperchild: an interpreter is replaced after so many batches.
        workers: addresses of `widemap-worker`, `"host"` or `"host:port"`.
        coordinator: the address of a `widemap serve`, which has workers of its own.
        key: the file of the cluster's key.
        require: labels that workers must have, `{"gpu": "a100"}`.
        retries: how often a value is tried again whose function has raised an exception.
        timeout: seconds that one value may take; then it is a `widemap.ItemTimeout`.
        return_exceptions: results of `map` have the exception in the place of a value that failed.
        progress: shows how far `map` and `imap` are.
        python: the interpreter of the workers; this one on this machine, else `python3`.
        files: files and directories that workers bring along.

    Examples:
        >>> from widemap import Pool
        >>> with Pool(2) as pool:
        ...     pool.map(abs, [-1, 2, -3])
        [1, 2, 3]
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        workers: str | Sequence[str] | None = None,
        coordinator: str | None = None,
        key: str | os.PathLike[str] | None = None,
        require: Mapping[str, str] | None = None,
        retries: int = 0,
        timeout: float | None = None,
        return_exceptions: bool = False,
        progress: bool = False,
        python: str | os.PathLike[str] | None = None,
        files: Iterable[str | os.PathLike[str]] = (),
        insecure: bool = False,
    ) -> None:
        self._state = None
        options = Options(
            processes, initializer, initargs, maxtasksperchild, workers, key, require, retries, timeout, python, files,
            insecure, coordinator,
        )  # fmt: skip
        self._returns = return_exceptions
        self._progress = progress
        self._is_timed = timeout is not None
        self._engine = engine = make(options)
        self._functions = Functions()
        self._finalizer = weakref.finalize(self, engine.terminate)
        self._state = RUN

    def __del__(self):
        if self._state == RUN:
            warnings.warn("unclosed running multiprocessing pool %r" % self, ResourceWarning, source=self, stacklevel=2)

    def __repr__(self):
        return "<%s.%s state=%s pool_size=%d>" % (
            type(self).__module__,
            type(self).__qualname__,
            self._state,
            self._engine.slots,
        )

    def __reduce__(self):
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.terminate()

    @property
    def _pool(self):
        """One for each slot, for those who count them."""
        return [None] * self._engine.slots

    def _check_running(self):
        if self._state != RUN:
            raise ValueError("Pool not running")
        if self._engine.error() is not None:
            raise self._engine.error()

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}) -> Any:
        """What `func(*args, **kwds)` returns, in an interpreter of the pool."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[Any], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """Begins to call `func(*args, **kwds)`.

        Examples:
            >>> from widemap import Pool
            >>> with Pool(1) as pool:
            ...     pool.apply_async(divmod, (7, 2)).get(timeout=10)
            (3, 1)
        """
        self._check_running()
        result = ApplyResult(callback, error_callback)
        call = Call(
            APPLY, self._functions.pickled(func), ((tuple(args), dict(kwds)),), result._deliver, result._end, total=1, batch=1
        )
        result._pool = self
        self._engine.add(call)
        return result

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """`list(map(func, iterable))`, in the interpreters of the pool.

        If a value fails, its exception is raised once all others are done.
        """
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """Begins what `map` does."""
        return self._map_async(MAP, func, iterable, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """`[func(*args) for args in iterable]`, in the interpreters of the pool.

        Examples:
            >>> from widemap import Pool
            >>> with Pool(1) as pool:
            ...     pool.starmap(pow, [(2, 3), (3, 2)])
            [8, 9]
        """
        return self.starmap_async(func, iterable, chunksize).get()

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], Any] | None = None,
        error_callback: Callable[[BaseException], Any] | None = None,
    ) -> AsyncResult:
        """Begins what `starmap` does."""
        return self._map_async(STARMAP, func, iterable, chunksize, callback, error_callback)

    def _map_async(self, kind, func, iterable, chunksize, callback, error_callback):
        self._check_running()
        check_chunksize(chunksize)
        if not hasattr(iterable, "__len__"):
            iterable = list(iterable)
        count = len(iterable)
        progress = Progress(count) if self._progress else None
        result = MapResult(count, callback, error_callback, self._returns, progress)
        if count == 0:
            result._finish()
            return result
        batch = self._batch(chunksize)
        call = Call(kind, self._functions.pickled(func), iterable, result._deliver, result._end, total=count, batch=batch)
        result._pool = self
        self._engine.add(call)
        return result

    def imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> IMapIterator:
        """An iterator of what `map` returns, in order. No more is taken of the iterable than is on its way.

        Examples:
            >>> import itertools
            >>> from widemap import Pool
            >>> with Pool(1) as pool:
            ...     squares = pool.imap(float, itertools.count())
            ...     [next(squares) for _ in range(3)]
            [0.0, 1.0, 2.0]
        """
        return self._imap(IMapIterator, func, iterable, chunksize)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> IMapIterator:
        """The same in the order in which they are done."""
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize)

    def _imap(self, kind, func, iterable, chunksize):
        self._check_running()
        check_chunksize(chunksize)
        total = len(iterable) if hasattr(iterable, "__len__") else None
        results = kind(Progress(total) if self._progress else None)
        results._returns = self._returns
        engine = self._engine

        def window():
            size = call.next_size(engine.slots)
            most = max(WINDOW_VALUES, call.batches_max(engine.slots, engine.options.is_local) * size)
            return most - (call.pulled - results._given)

        batch = self._batch(chunksize)
        call = Call(
            MAP,
            self._functions.pickled(func),
            iterable,
            results._deliver,
            results._end,
            batch=batch,
            window=window,
            whole=chunksize is not None,
        )
        results.wake = engine.wake
        results._pool = self
        engine.add(call)
        return results

    def _batch(self, chunksize):
        # One that is ended takes its batch with it.
        return 1 if self._is_timed else chunksize

    def close(self) -> None:
        """Nothing more is begun; what was begun is done."""
        if self._state == RUN:
            self._state = CLOSE
            self._engine.close()

    def terminate(self) -> None:
        """Ends everything at once."""
        self._state = TERMINATE
        self._finalizer()

    def join(self) -> None:
        """Waits for everything to end, after `close` or `terminate`."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        self._engine.join()


class Functions:
    """Functions as they travel: by name if they are of an installed module, else by value.

    One is pickled when it is first used: what it finds in its module then, it has later, as in a process that was forked
    then. What it encloses is looked at each time.
    """

    def __init__(self):
        self._known = weakref.WeakKeyDictionary()

    def pickled(self, func):
        """A function's pickle."""
        if type(func) not in (types.FunctionType, types.BuiltinFunctionType, type) or changes(func):
            return dumps(func)
        known = self._known.get(func)
        if known is None:
            known = self._known[func] = dumps(func)
        return known


def changes(func):
    """Whether what a function is may change between two calls."""
    return bool(getattr(func, "__closure__", None))


def check_chunksize(chunksize):
    if chunksize is not None and chunksize < 1:
        raise ValueError("Chunksize must be 1+, not {0:n}".format(chunksize))
