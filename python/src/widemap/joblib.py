"""A backend for joblib, and so for scikit-learn's `n_jobs`.

    >>> import joblib, widemap.joblib
    >>> with joblib.parallel_config("widemap", n_jobs=2):
    ...     joblib.Parallel()(joblib.delayed(abs)(x) for x in [-1, -2])
    [1, 2]

Options of `widemap.Executor` are given beside the name: `parallel_config("widemap", workers=["host"])`. joblib, and
what the functions use, has to be installed on the workers.
"""

from __future__ import absolute_import

import operator

from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, register_parallel_backend

from ._executor import Executor
from ._pool import cpus

# Calls what it is given. By name: nothing of this package is on the workers.
CALL = operator.methodcaller("__call__")


class WidemapBackend(AutoBatchingMixin, ParallelBackendBase):
    """Runs the batches of joblib in an executor."""

    supports_sharedmem = False
    supports_timeout = True
    supports_retrieve_callback = True
    supports_return_generator = True
    default_n_jobs = -1

    def __init__(self, nesting_level=None, inner_max_num_threads=None, **options):
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._options = options
        self._executor = None

    def effective_n_jobs(self, n_jobs):
        """How many run at a time: slots of the workers if there are some, else as many as was said."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if self._executor is not None and self._options.get("workers"):
            return self._executor._engine.slots
        n_jobs = self.default_n_jobs if n_jobs is None else n_jobs
        return n_jobs if n_jobs > 0 else max(1, cpus() + 1 + n_jobs)

    def configure(self, n_jobs=1, parallel=None, prefer=None, require=None, **_):
        """Starts what runs the batches."""
        if require == "sharedmem":
            raise ValueError("the backend `widemap` has processes, which share no memory")
        n_jobs = self.effective_n_jobs(n_jobs)
        options = dict(self._options)
        if not options.get("workers"):
            options.setdefault("max_workers", n_jobs)
        self.parallel = parallel
        self._executor = Executor(**options)
        return self.effective_n_jobs(n_jobs)

    def submit(self, func, callback=None):
        """Begins a batch."""
        future = self._executor.submit(CALL, func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    # As versions before 1.5 have it.
    apply_async = submit

    def retrieve_result_callback(self, out):
        """The results of a batch."""
        return out.result()

    def terminate(self):
        """Ends what runs the batches."""
        if self._executor is not None:
            self._executor._finalizer()
            self._executor = None

    def abort_everything(self, ensure_ready=True):
        """Ends what runs, and is ready again if that is wanted."""
        self.terminate()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)


register_parallel_backend("widemap", WidemapBackend)
