"""CPython's own tests of `multiprocessing.Pool` and of executors, from the interpreter's `test` package, run against
ours. What cannot apply is listed with the reason."""

import contextlib
import importlib
import multiprocessing
import sys
import unittest
from unittest import mock

import support  # noqa: F401
import widemap

try:
    import test._test_multiprocessing as theirs
except ImportError:
    theirs = None

POOL_SKIPPED = {
    "test_unpickleable_result": "a lambda is a result like another: functions travel by value",
    "test_pool_worker_lifetime": "looks at the process objects of multiprocessing; test_pool.py has the same for pids",
    "test_worker_finalization_via_atexit_handler_of_multiprocessing": "runs a script that imports multiprocessing's "
    "own pool",
}

BROKEN = "one task that ends its interpreter fails alone here: the executor does not break"
PROCESSES = "looks at the process objects of ProcessPoolExecutor"
SCRIPT = "runs a script that imports the executor from concurrent.futures; test_executor.py has the same"
EXECUTOR_SKIPPED = {
    "test_crash_at_task_unpickle": BROKEN,
    "test_crash_big_data": BROKEN,
    "test_crash_during_func_exec_on_worker": BROKEN,
    "test_crash_during_result_pickle_on_worker": BROKEN,
    "test_error_at_task_unpickle": BROKEN,
    "test_error_during_result_unpickle_in_result_handler": BROKEN,
    "test_exit_at_task_unpickle": BROKEN,
    "test_error_during_result_pickle_on_worker": "a result that cannot be pickled is a MaybeEncodingError, as a Pool has it",
    "test_exit_during_func_exec_on_worker": "SystemExit of a task does not end this program: it is a RemoteError",
    "test_exit_during_result_pickle_on_worker": "SystemExit of a task does not end this program: it is a RemoteError",
    "test_exit_during_result_unpickle_in_result_handler": BROKEN,
    "test_shutdown_deadlock": BROKEN,
    "test_shutdown_deadlock_pickle": PROCESSES,
    "test_hang_gh83386": SCRIPT,
    "test_interpreter_shutdown": SCRIPT,
    "test_submit_after_interpreter_shutdown": SCRIPT,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": PROCESSES,
    "test_idle_process_reuse_multiple": PROCESSES,
    "test_idle_process_reuse_one": PROCESSES,
    "test_killed_child": PROCESSES,
    "test_max_tasks_early_shutdown": PROCESSES,
    "test_max_tasks_per_child": PROCESSES,
    "test_max_tasks_per_child_defaults_to_spawn_context": PROCESSES,
    "test_max_workers_too_large": PROCESSES,
    "test_saturation": PROCESSES,
    "test_python_finalization_error": PROCESSES,
    "test_ressources_gced_in_workers": "its argument is a proxy of a manager, whose key is only inherited by children "
    "of multiprocessing",
}


def skipped(case, reasons):
    """A case without what cannot apply."""
    for name, why in reasons.items():
        method = getattr(case, name, None)
        if method is not None:
            setattr(case, name, unittest.skip(why)(lambda self: None))
    return case


if theirs is not None:

    class Base(theirs.BaseTestCase, unittest.TestCase):
        """What the mixin for processes gives."""

        TYPE = "processes"
        Pool = staticmethod(widemap.Pool)

        @classmethod
        def setUpClass(cls):
            patched = mock.patch.object(multiprocessing, "Pool", widemap.Pool)
            patched.start()
            cls.addClassCleanup(patched.stop)
            super().setUpClass()

    class PoolTests(theirs._TestPool, Base):
        """`_TestPool`."""

    class PoolWorkerErrors(theirs._TestPoolWorkerErrors, Base):
        """`_TestPoolWorkerErrors`."""

    class PoolWorkerLifetime(theirs._TestPoolWorkerLifetime, Base):
        """`_TestPoolWorkerLifetime`."""

    for case in (PoolTests, PoolWorkerErrors, PoolWorkerLifetime):
        skipped(case, POOL_SKIPPED)
    del case


def executor_mixins():
    """The mixins of the tests of executors, by their names, in whichever modules this version has them."""
    names = ["", ".executor", ".test_init", ".test_shutdown", ".test_wait", ".test_as_completed", ".test_deadlock"]
    names.append(".test_process_pool")
    found = {}
    for name in names:
        with contextlib.suppress(ImportError):
            found.update(vars(importlib.import_module("test.test_concurrent_futures" + name)))
    return found


class OurExecutor(widemap.Executor):
    """Ours, as those tests make it: which processes there are is no matter of theirs."""

    def __init__(self, max_workers=None, mp_context=None, **options):
        super().__init__(max_workers, **options)


MIXINS = executor_mixins()
if "ExecutorTest" in MIXINS:

    class OurMixin(MIXINS["ExecutorMixin"]):
        """What the mixin for processes gives."""

        executor_type = OurExecutor

        def get_context(self):
            """No context of multiprocessing is ours."""
            return None

    for name in (
        "InitializerMixin",
        "ExecutorShutdownTest",
        "WaitTests",
        "AsCompletedTests",
        "ExecutorTest",
        "ProcessPoolExecutorTest",
        "ExecutorDeadlockTest",
    ):
        case = type("Our" + name, (MIXINS[name], OurMixin, unittest.TestCase), {})
        globals()[case.__name__] = skipped(case, EXECUTOR_SKIPPED)
    del case


class IsThere(unittest.TestCase):
    """That something was tested."""

    def test_the_tests_are_there(self):
        if theirs is None:
            self.skipTest("this Python (%s) comes without its `test` package" % sys.executable)
        suite = unittest.defaultTestLoader.loadTestsFromTestCase(PoolTests)
        self.assertGreater(suite.countTestCases(), 20)
        if "ExecutorTest" not in MIXINS:
            self.skipTest("this Python comes without the tests of concurrent.futures")


if __name__ == "__main__":
    unittest.main()
