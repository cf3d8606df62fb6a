"""What an executor does."""

import os
import time
import unittest
from concurrent.futures import BrokenExecutor

import support
import widemap


class Executors(unittest.TestCase):
    """Over executors of two interpreters."""

    def test_futures_have_results_and_exceptions(self):
        with widemap.Executor(2) as executor:
            self.assertEqual(executor.submit(pow, 2, 10).result(30), 1024)
            self.assertEqual(list(executor.map(lambda a, b: a + b, range(5), range(5))), [0, 2, 4, 6, 8])
            error = executor.submit(int, "x").exception(30)
            self.assertIsInstance(error, ValueError)
            self.assertIn("int", str(error.__cause__))

    def test_many_short_futures(self):
        with widemap.Executor(2) as executor:
            futures = [executor.submit(abs, -n) for n in range(3000)]
            self.assertEqual([future.result(60) for future in futures], list(range(3000)))

    def test_one_that_ends_its_interpreter_fails_alone(self):
        with widemap.Executor(2) as executor:
            futures = [executor.submit(os._exit if n == 3 else abs, n) for n in range(6)]
            self.assertIsInstance(futures[3].exception(60), widemap.ItemCrashed)
            self.assertEqual([f.result(60) for n, f in enumerate(futures) if n != 3], [0, 1, 2, 4, 5])
            self.assertEqual(executor.submit(abs, -7).result(60), 7)

    def test_what_waits_can_be_cancelled(self):
        with widemap.Executor(1) as executor:
            futures = [executor.submit(time.sleep, 0.05) for _ in range(20)]
            self.assertTrue(futures[-1].cancel())
            self.assertIsNone(futures[0].result(30))
        self.assertTrue(all(future.done() for future in futures))

    def test_a_process_that_is_killed_breaks_it(self):
        executor = widemap.Executor(1)
        future = executor.submit(time.sleep, 600)
        executor._engine._process.kill()
        self.assertIsInstance(future.exception(10), widemap.BrokenExecutor)
        with self.assertRaises(widemap.BrokenExecutor):
            executor.submit(abs, 1)
        executor.shutdown()

    def test_all_that_wait_hear_that_it_is_broken(self):
        executor = widemap.Executor(1)
        futures = [executor.submit(time.sleep, 600) for _ in range(3000)]
        executor._engine._process.kill()
        for future in futures:
            self.assertIsInstance(future.exception(30), widemap.BrokenExecutor)
        executor.shutdown()

    def test_who_ends_everything_at_a_result_leaves_nobody_waiting(self):
        executor = widemap.Executor(2)
        # What they cost is known, so that they travel together.
        self.assertEqual(list(executor.map(abs, range(2000))), list(range(2000)))
        futures = [executor.submit(abs, n) for n in range(2000)]
        futures[1000].add_done_callback(lambda _: executor._engine.terminate())
        outcomes = [future.exception(30) for future in futures]
        self.assertIsNone(outcomes[1000])
        self.assertTrue(all(error is None or isinstance(error, BrokenExecutor) for error in outcomes), outcomes[-1])
        self.assertIsNotNone(outcomes[-1])
        executor.shutdown()

    def test_a_program_that_ends_completes_what_it_has_submitted(self):
        script = support.run(
            "import time, widemap\n"
            "def slow(path):\n"
            "    time.sleep(0.5)\n"
            "    open(path, 'w').close()\n"
            "executor = widemap.Executor(1)\n"
            "import sys\n"
            "executor.submit(slow, sys.argv[1])\n",
            os.path.join(support.directory(self), "done"),
        )
        self.assertEqual(script.returncode, 0, script.stderr)
        self.assertTrue(os.path.exists(script.args[-1]))

    def test_after_shutdown_nothing_is_taken(self):
        executor = widemap.Executor(1)
        executor.shutdown()
        with self.assertRaisesRegex(RuntimeError, "after shutdown"):
            executor.submit(abs, 1)


if __name__ == "__main__":
    unittest.main()
