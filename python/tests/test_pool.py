"""What a pool does, as a user of multiprocessing expects it."""

import collections
import contextlib
import functools
import gc
import io
import itertools
import os
import sys
import tempfile
import threading
import time
import unittest

import support
import widemap


class Point:
    """A class of this module, which workers cannot import."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __eq__(self, other):
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)


class Awkward(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, one, two):
        super().__init__(one)
        self.two = two


class Calls(unittest.TestCase):
    """The calls, over one pool."""

    @classmethod
    def setUpClass(cls):
        cls.pool = widemap.Pool(2)

    @classmethod
    def tearDownClass(cls):
        cls.pool.terminate()
        cls.pool.join()

    def test_results_come_in_the_order_of_the_values(self):
        self.assertEqual(self.pool.map(lambda x: x * x, range(10_000)), [x * x for x in range(10_000)])
        self.assertEqual(self.pool.starmap(pow, [(2, 5), (3, 2)]), [32, 9])
        self.assertEqual(list(self.pool.imap(str, range(1000))), [str(x) for x in range(1000)])
        self.assertEqual(sorted(self.pool.imap_unordered(abs, range(-500, 500))), sorted(map(abs, range(-500, 500))))
        self.assertEqual(self.pool.apply(divmod, (7, 2)), (3, 1))
        self.assertEqual(self.pool.apply_async(int, ("ff",), {"base": 16}).get(30), 255)

    def test_slow_first_values_do_not_change_the_order(self):
        def slow(x):
            time.sleep(0.2 if x == 0 else 0)
            return x

        self.assertEqual(list(self.pool.imap(slow, range(100), chunksize=1)), list(range(100)))

    def test_functions_travel_by_value(self):
        offset = 5

        def enclosing(x):
            return x + offset

        self.assertEqual(self.pool.map(enclosing, [1, 2]), [6, 7])
        offset = 10
        self.assertEqual(self.pool.map(enclosing, [1, 2]), [11, 12])
        self.assertEqual(self.pool.map(functools.partial(pow, 2), [3, 4]), [8, 16])
        add = self.pool.map(lambda n: lambda x: x + n, [1, 10])
        self.assertEqual([f(1) for f in add], [2, 11])

    def test_values_and_results_of_own_classes(self):
        flipped = self.pool.map(lambda p: Point(p.y, p.x), [Point(1, 2), Point(3, 4)])
        self.assertEqual(flipped, [Point(2, 1), Point(4, 3)])
        self.assertIs(type(flipped[0]), Point)

    def test_an_exception_comes_back_as_itself_with_where_it_was(self):
        def fails(x):
            raise KeyError(x)  # right here

        with self.assertRaises(KeyError) as caught:
            self.pool.map(fails, [3])
        self.assertEqual(caught.exception.args, (3,))
        self.assertIn("raise KeyError(x)  # right here", str(caught.exception.__cause__))

    def test_an_exception_that_cannot_be_unpickled_is_told_as_text(self):
        def fails(x):
            raise Awkward(1, 2)

        with self.assertRaises(widemap.RemoteError) as caught:
            self.pool.apply(fails, (1,))
        self.assertIn("Awkward: 1", str(caught.exception))

    def test_sys_exit_in_a_function_does_not_end_this_program(self):
        with self.assertRaises(widemap.RemoteError) as caught:
            self.pool.map(sys.exit, [3])
        self.assertIn("SystemExit: 3", str(caught.exception))

    def test_a_result_that_cannot_be_pickled_is_an_error_of_its_own(self):
        from multiprocessing.pool import MaybeEncodingError

        results = self.pool.imap(lambda x: threading.Lock() if x == 3 else x, range(6))
        told = []
        while True:
            try:
                told.append(next(results))
            except StopIteration:
                break
            except MaybeEncodingError:
                told.append("error")
        self.assertEqual(told, [0, 1, 2, "error", 4, 5])

    def test_imap_takes_no_more_than_its_window(self):
        taken = itertools.count()
        source = (next(taken) for _ in itertools.count())
        results = self.pool.imap(abs, source)
        first = [next(results) for _ in range(50)]
        self.assertEqual(first, list(range(50)))
        time.sleep(0.5)
        ahead = next(taken)
        time.sleep(0.2)
        self.assertLess(ahead, 1_000_000)
        self.assertEqual(next(taken), ahead + 1)

    def test_an_endless_imap_takes_constant_memory(self):
        script = support.run(
            "import itertools, resource, widemap\n"
            "with widemap.Pool(2) as pool:\n"
            "    results = pool.imap(bytes, itertools.repeat(1000))\n"
            "    peaks = []\n"
            "    for _ in range(2):\n"
            "        for _ in range(150_000):\n"
            "            assert len(next(results)) == 1000\n"
            "        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
            "    print(*peaks)\n"
        )
        self.assertEqual(script.returncode, 0, script.stderr)
        first, second = map(int, script.stdout.split())
        # In KiB. All of the second half would be 150 MB.
        self.assertLess(second - first, 48 * 1024)

    def test_imap_with_a_timeout_goes_on_later(self):
        results = self.pool.imap(lambda x: time.sleep(x) or x, [0.6])
        with self.assertRaises(widemap.TimeoutError):
            results.next(timeout=0.05)
        self.assertEqual(results.next(timeout=30), 0.6)

    def test_imap_of_what_comes_slowly_gives_each_result_before_the_next_value(self):
        self.pool.map(abs, range(1000))
        for imap in (self.pool.imap, self.pool.imap_unordered):
            got = threading.Semaphore(1)

            def answered():
                for value in range(20):
                    # As a program that asks on when it has the answer.
                    self.assertTrue(got.acquire(timeout=30), "the value before was never worked off")
                    yield value

            for want, value in enumerate(imap(abs, answered())):
                self.assertEqual(value, want)
                got.release()
            self.assertEqual(want, 19)

    def test_an_iterable_that_waits_holds_up_nothing_else(self):
        go_on = threading.Event()

        def waits():
            yield 1
            if not go_on.wait(30):
                raise TimeoutError("held up")
            yield 2

        results = self.pool.imap(abs, waits())
        self.assertEqual(next(results), 1)
        self.assertEqual(self.pool.map(abs, range(-100, 0)), list(range(100, 0, -1)))
        go_on.set()
        self.assertEqual(list(results), [2])

    def test_callbacks_are_called_before_get_returns(self):
        called = []
        self.pool.map_async(int, ["1", "2"], callback=called.append).wait(30)
        self.pool.map_async(int, ["x"], error_callback=called.append).wait(30)
        self.assertEqual(called[0], [1, 2])
        self.assertIsInstance(called[1], ValueError)

    def test_a_callback_that_fails_ends_nothing_else(self):
        shown = io.StringIO()
        with contextlib.redirect_stderr(shown):
            self.pool.apply_async(abs, (1,), callback=lambda value: 1 // 0).get(30)
        self.assertIn("ZeroDivisionError", shown.getvalue())
        self.assertEqual(self.pool.apply(abs, (-2,)), 2)

    def test_large_values_and_results_are_whole(self):
        blob = os.urandom(20_000_000)
        self.assertEqual(self.pool.apply(lambda b: b[::-1], (blob,)), blob[::-1])

    def test_many_single_calls(self):
        results = [self.pool.apply_async(abs, (-x,)) for x in range(5000)]
        self.assertEqual([result.get(60) for result in results], list(range(5000)))

    def test_what_functions_print_comes_out_here(self):
        script = support.run(
            "import widemap\n"
            "with widemap.Pool(1) as pool:\n"
            "    pool.map(print, ['hello from afar'])\n"
        )
        self.assertEqual(script.returncode, 0, script.stderr)
        self.assertIn("hello from afar", script.stderr)
        self.assertEqual(script.stdout, "")


class Whole(unittest.TestCase):
    """Pools of one's own."""

    def test_an_initializer_runs_in_each_interpreter(self):
        def set_up(a, b):
            import builtins

            builtins.our_sum = a + b

        with widemap.Pool(2, set_up, (40, 2)) as pool:
            self.assertEqual(pool.map(lambda _: our_sum, range(8), chunksize=1), [42] * 8)  # noqa: F821
        with widemap.Pool(1, set_up, ("x" * 3_000_000, "y")) as pool:
            self.assertEqual(pool.apply(lambda: len(our_sum)), 3_000_001)  # noqa: F821

    def test_an_initializer_that_fails_is_an_error_and_no_hang(self):
        with self.assertRaises(widemap.PoolBroken) as caught:
            with widemap.Pool(2, int, ("no number",)) as pool:
                pool.map(abs, [1])
        self.assertIn("no number", str(caught.exception))

    def test_interpreters_are_replaced_after_so_many_tasks(self):
        with widemap.Pool(1, maxtasksperchild=2) as pool:
            pids = [pool.apply(os.getpid) for _ in range(6)]
        self.assertEqual(len(set(pids)), 3, pids)

    def test_exceptions_can_be_results(self):
        with widemap.Pool(2, return_exceptions=True) as pool:
            got = pool.map(int, ["1", "x", "3"])
        self.assertEqual((got[0], got[2]), (1, 3))
        self.assertIsInstance(got[1], ValueError)

    def test_what_fails_is_tried_again_if_that_is_said(self):
        directory = support.directory(self)

        def flaky(x):
            path = os.path.join(directory, str(x))
            if not os.path.exists(path):
                open(path, "w").close()
                raise ValueError("not yet")
            return x

        with widemap.Pool(2, retries=1) as pool:
            self.assertEqual(pool.map(flaky, range(20)), list(range(20)))
        with widemap.Pool(2) as pool:
            with self.assertRaises(ValueError):
                pool.map(flaky, range(20, 22))

    def test_one_that_takes_too_long_is_ended_alone(self):
        with widemap.Pool(2, timeout=0.5, return_exceptions=True) as pool:
            got = pool.map(lambda x: time.sleep(60 if x == 3 else 0) or x, range(6))
        self.assertIsInstance(got[3], widemap.ItemTimeout)
        self.assertEqual(got[:3] + got[4:], [0, 1, 2, 4, 5])

    def test_one_that_ends_its_interpreter_fails_alone(self):
        with widemap.Pool(2, return_exceptions=True) as pool:
            got = pool.map(lambda x: os._exit(1) if x == 49 else x, range(100))
        self.assertIsInstance(got[49], widemap.ItemCrashed)
        self.assertEqual(got[:49] + got[50:], list(range(49)) + list(range(50, 100)))

    def test_one_of_many_small_tasks_that_ends_its_interpreter_fails_alone(self):
        def task(x):
            return os._exit(1) if x == 700 else -x

        with widemap.Pool(2, return_exceptions=True) as pool:
            # What they cost is known then, and they travel together.
            self.assertEqual(pool.map(task, range(100), chunksize=1), [-x for x in range(100)])
            got = pool.map(task, range(1000), chunksize=1)
            self.assertIsInstance(got.pop(700), widemap.ItemCrashed)
            self.assertEqual(got, [-x for x in range(1000) if x != 700])
            single = [pool.apply_async(task, (x,)) for x in range(690, 710)]
            for x, result in zip(range(690, 710), single):
                result.wait()
                self.assertEqual(result.successful(), x != 700, x)

    def test_small_tasks_that_travel_together_fail_and_are_retried_each_for_itself(self):
        with tempfile.TemporaryDirectory() as directory:

            def task(x):
                if x % 10:
                    return x
                with open(os.path.join(directory, str(x)), "a+") as file:
                    file.write("once")
                    file.seek(0)
                    if len(file.read()) < 8:
                        raise ValueError(x)
                return -x

            want = [x if x % 10 else -x for x in range(500)]
            with widemap.Pool(2, retries=1) as pool:
                self.assertEqual(pool.map(task, range(1, 10), chunksize=1), list(range(1, 10)))
                self.assertEqual(pool.map(task, range(500), chunksize=1), want)
                self.assertEqual({os.path.getsize(file.path) for file in os.scandir(directory)}, {8})

    def test_tasks_that_wait_for_each_other_meet(self):
        def meet(mine, other):
            open(mine, "w").close()
            until = time.monotonic() + 30
            while not os.path.exists(other):
                if time.monotonic() > until:
                    raise TimeoutError(other)
                time.sleep(0.001)

        directory = support.directory(self)
        paths = [os.path.join(directory, str(number)) for number in range(8)]
        with widemap.Pool(2) as pool:
            # What is known to take next to nothing then may take longer.
            pool.starmap(meet, [(paths[0], paths[0])] * 100)
            for a, b in zip(paths[0::2], paths[1::2]):
                results = [pool.apply_async(meet, pair) for pair in ((a, b), (b, a))]
                self.assertEqual([result.get(60) for result in results], [None, None])

    def test_a_list_that_changes_meanwhile_ends_as_long_as_it_was(self):
        with widemap.Pool(2) as pool:
            values = list(range(100))
            result = pool.map_async(lambda x: time.sleep(0.01) or x, values)
            values += range(1000, 1010)
            self.assertEqual(result.get(60), list(range(100)))
            values = list(range(100))
            result = pool.map_async(lambda x: time.sleep(0.01) or x, values)
            del values[50:]
            with self.assertRaisesRegex(RuntimeError, "shorter"):
                result.get(60)

    def test_a_first_call_is_shared_by_all_interpreters(self):
        def whose(x):
            until = time.perf_counter() + 50e-6
            while time.perf_counter() < until:
                pass
            return os.getpid()

        for _ in range(5):
            with widemap.Pool(2) as pool:
                # Interpreters that have run something cheap are not taken for ones that everything is cheap for.
                pool.map(abs, range(10))
                count = collections.Counter(pool.map(whose, range(20_000)))
            self.assertEqual(len(count), 2)
            self.assertGreater(min(count.values()), 2_000, count)

    def test_an_iterable_that_fails_is_told_behind_its_values(self):
        def source():
            yield from range(3)
            raise LookupError("enough")

        with widemap.Pool(1) as pool:
            results = pool.imap(abs, source())
            self.assertEqual([next(results) for _ in range(3)], [0, 1, 2])
            with self.assertRaisesRegex(LookupError, "enough"):
                next(results)
            with self.assertRaises(StopIteration):
                next(results)

    def test_after_close_what_was_begun_is_done_and_nothing_more_is_begun(self):
        pool = widemap.Pool(2)
        result = pool.map_async(lambda x: time.sleep(0.05) or x, range(10))
        pool.close()
        with self.assertRaises(ValueError):
            pool.apply(abs, (1,))
        pool.join()
        self.assertEqual(result.get(0), list(range(10)))

    def test_who_holds_a_result_holds_its_pool(self):
        script = (
            "import widemap\n"
            "def rows():\n    pool = widemap.Pool(2)\n    return pool.imap(abs, (-x for x in range(500)))\n"
            "print(widemap.Pool(2).map_async(abs, range(-3, 0)).get(30), sum(rows()), flush=True)\n"
        )
        done = support.run(script)
        self.assertEqual((done.returncode, done.stdout), (0, "[3, 2, 1] 124750\n"), done.stderr)

    def test_a_callback_that_exits_leaves_nobody_waiting(self):
        with widemap.Pool(2) as pool:
            results = [pool.apply_async(abs, (-x,), callback=sys.exit if x == 3 else None) for x in range(50)]
            with contextlib.redirect_stderr(io.StringIO()):
                self.assertEqual([result.get(30) for result in results], list(range(50)))

    @unittest.skipUnless(hasattr(os, "fork"), "there is no fork here")
    def test_a_forked_process_neither_ends_nor_holds_the_pool(self):
        pool = widemap.Pool(2)
        self.assertEqual(pool.apply(abs, (-1,)), 1)
        go_on, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(told)
                pool.terminate()
                os.read(go_on, 1)
            finally:
                os._exit(0)
        self.assertEqual(pool.map(abs, range(-10, 0)), list(range(10, 0, -1)))
        pool.close()
        ended = threading.Thread(target=pool.join, daemon=True)
        ended.start()
        ended.join(30)
        self.assertFalse(ended.is_alive())
        os.close(told)
        self.assertEqual(os.waitpid(child, 0)[1], 0)

    def test_what_nobody_has_taken_is_there_after_join(self):
        pool = widemap.Pool(2)
        # More than a window of what takes so long.
        results = pool.imap(lambda x: time.sleep(0.001) or x, (value for value in range(1_000)))
        pool.close()
        ended = threading.Thread(target=pool.join, daemon=True)
        ended.start()
        ended.join(60)
        self.assertFalse(ended.is_alive())
        self.assertEqual(list(results), list(range(1_000)))

    def test_terminate_ends_what_waits_within_a_second(self):
        pool = widemap.Pool(2)
        result = pool.map_async(time.sleep, [600] * 4)
        time.sleep(0.3)
        begun = time.monotonic()
        pool.terminate()
        with self.assertRaises(widemap.PoolTerminated):
            result.get(10)
        pool.join()
        self.assertLess(time.monotonic() - begun, 5)

    def test_a_process_that_is_killed_is_an_error_and_no_hang(self):
        pool = widemap.Pool(2)
        pool.apply(abs, (1,))
        result = pool.map_async(time.sleep, [600] * 4)
        time.sleep(0.2)
        pool._engine._process.kill()
        with self.assertRaises(widemap.PoolBroken) as caught:
            result.get(10)
        self.assertIn("signal 9", str(caught.exception))
        with self.assertRaises(widemap.PoolBroken):
            pool.map(abs, [1])
        pool.terminate()
        pool.join()

    def test_nothing_is_left_of_a_program_that_is_killed(self):
        script = (
            "import os, time, widemap\n"
            "pool = widemap.Pool(2)\n"
            "print(pool._engine._process.pid, *pool.map(lambda _: os.getpid(), [0]), flush=True)\n"
            "pool.map(time.sleep, [600, 600])\n"
        )
        with support.started(script) as process:
            pids = [int(word) for word in process.stdout.readline().split()]
            process.kill()
        self.assertEqual(support.alive_after(pids, seconds=10), [])

    def test_nothing_is_left_of_a_pool_that_nobody_closes(self):
        script = support.run(
            "import os, widemap\n"
            "pool = widemap.Pool(2)\n"
            "print(pool._engine._process.pid, *pool.map(lambda _: os.getpid(), [0]), pool._engine._directory)\n"
        )
        self.assertEqual(script.returncode, 0, script.stderr)
        *pids, directory = script.stdout.split()
        self.assertEqual(support.alive_after([int(pid) for pid in pids], seconds=10), [])
        self.assertFalse(os.path.exists(directory))

    def test_ctrl_c_is_heard_at_once(self):
        script = (
            "import signal, time, widemap\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "with widemap.Pool(2) as pool:\n"
            "    pool.map(abs, [1])\n"
            "    print('ready', flush=True)\n"
            "    pool.map(time.sleep, [600, 600])\n"
        )
        with support.started(script) as process:
            self.assertEqual(process.stdout.readline().strip(), "ready")
            time.sleep(0.2)
            begun = time.monotonic()
            process.send_signal(2)
            process.wait(10)
            self.assertLess(time.monotonic() - begun, 5)
        self.assertNotEqual(process.returncode, 0)

    def test_another_python_is_refused_before_anything_runs(self):
        directory = support.directory(self)
        python = os.path.join(directory, "python")
        # As it would be: the interpreter says that it is of another minor version.
        with open(python, "w") as file:
            file.write(
                "#!%s\nimport sys\nsys.version_info = (3, 99, 1, 'final', 0)\n"
                "argv = sys.argv[1:]\nsys.argv = [''] + argv[2:]\nexec(argv[1])\n" % sys.executable
            )
        os.chmod(python, 0o755)
        with self.assertRaises(widemap.PoolBroken) as caught:
            with widemap.Pool(1, python=python) as pool:
                pool.map(abs, [1])
        here = "%d.%d" % sys.version_info[:2]
        self.assertIn("Python 3.99", str(caught.exception))
        self.assertIn("is of Python %s" % here, str(caught.exception))

    def test_progress_is_shown(self):
        shown = io.StringIO()
        with contextlib.redirect_stderr(shown), widemap.Pool(2, progress=True) as pool:
            pool.map(abs, range(100))
        self.assertIn("100/100", shown.getvalue())

    def test_a_pool_that_nobody_holds_ends(self):
        pool = widemap.Pool(1)
        pool.apply(abs, (1,))
        process = pool._engine._process
        pool.close()
        del pool
        gc.collect()
        process.wait(10)

    def test_the_first_result_of_what_is_told_wrongly(self):
        for wrong in ({"processes": 0}, {"maxtasksperchild": 0}, {"retries": -1}):
            with self.assertRaises(ValueError):
                widemap.Pool(**wrong)
        with self.assertRaises(TypeError):
            widemap.Pool(1, initializer=3)


if __name__ == "__main__":
    unittest.main()
