"""The ten lines that this began with: as they are, with one import changed, on this machine and on workers."""

import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from unittest import mock

import support
import widemap
from widemap import _program

TEN_LINES = """
from {module} import Pool

def square(x):
    import time
    time.sleep(0.02)
    return x * x

if __name__ == "__main__":
    with Pool() as pool:
        print(pool.map(square, range(100)))
"""
WANTED = str([x * x for x in range(100)])


class TenLines(unittest.TestCase):
    """The printed list is the same wherever it is made."""

    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.directory = directory.name
        cls.key = os.path.join(cls.directory, "key")
        subprocess.run([_program.find(), "key", "new", cls.key], check=True, capture_output=True)

    def script(self, module, environment=None):
        path = os.path.join(self.directory, "ten_lines_of_%s.py" % module)
        with open(path, "w") as file:
            file.write(TEN_LINES.format(module=module))
        variables = dict(support.environment(), **(environment or {}))
        return subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True, env=variables)

    def workers(self, count):
        workers = [support.Worker(self.key) for _ in range(count)]
        for worker in workers:
            self.addCleanup(worker.kill)
        return workers

    def check(self, process):
        out, _ = process.communicate(timeout=120)
        self.assertEqual((process.returncode, out.strip()), (0, WANTED))

    def test_as_they_are(self):
        self.check(self.script("multiprocessing"))

    def test_with_the_import_changed_and_no_cluster(self):
        self.check(self.script("widemap"))

    def test_on_two_workers_under_a_key(self):
        addresses = ",".join(worker.address for worker in self.workers(2))
        self.check(self.script("widemap", {"WIDEMAP_WORKERS": addresses, "WIDEMAP_KEY": self.key}))

    def test_with_one_of_the_workers_killed_in_the_middle(self):
        workers = self.workers(2)
        addresses = ",".join(worker.address for worker in workers)
        process = self.script("widemap", {"WIDEMAP_WORKERS": addresses, "WIDEMAP_KEY": self.key})
        time.sleep(0.9)
        workers[0].kill()
        self.check(process)

    def test_a_worker_that_is_killed_loses_nothing(self):
        workers = self.workers(2)
        with widemap.Pool(workers=[worker.address for worker in workers], key=self.key) as pool:
            threading.Timer(1.0, workers[0].kill).start()
            got = pool.map(lambda x: time.sleep(0.05) or x, range(100), chunksize=1)
        self.assertEqual(got, list(range(100)))

    def test_through_a_coordinator_that_serves(self):
        service = support.Service(self.key, os.path.join(self.directory, "jobs"), self.workers(2))
        self.addCleanup(service.kill)
        self.check(self.script("widemap", {"WIDEMAP_COORDINATOR": service.address, "WIDEMAP_KEY": self.key}))
        with widemap.Pool(coordinator=service.address, key=self.key) as pool:
            self.assertEqual(pool.map(abs, range(-10, 10)), [abs(x) for x in range(-10, 10)])
            results = [pool.apply_async(pow, (2, n)) for n in range(20)]
            self.assertEqual([result.get(60) for result in results], [2**n for n in range(20)])
            endless = pool.imap(abs, itertools.count())
            self.assertEqual([next(endless) for _ in range(300)], list(range(300)))
            with self.assertRaises(ValueError):
                pool.map(int, ["1", "x"])
            got = threading.Semaphore(1)

            def answered():
                for value in range(5):
                    self.assertTrue(got.acquire(timeout=30), "the value before was never worked off")
                    yield value

            for want, value in enumerate(pool.imap(abs, answered())):
                self.assertEqual(value, want)
                got.release()
            self.assertEqual(want, 4)
        pool = widemap.Pool(coordinator=service.address, key=self.key)
        left = pool.imap(abs, (value for value in range(3_000)))
        pool.close()
        ended = threading.Thread(target=pool.join, daemon=True)
        ended.start()
        ended.join(60)
        self.assertFalse(ended.is_alive())
        self.assertEqual(list(left), list(range(3_000)))

    def test_a_coordinator_that_is_not_there_is_an_error(self):
        with widemap.Pool(coordinator="127.0.0.1:1", key=self.key) as pool:
            with self.assertRaises(widemap.PoolBroken) as caught:
                pool.map(abs, [1])
            endless = pool.imap(abs, itertools.count())
            with self.assertRaises(widemap.PoolBroken):
                next(endless)
            with self.assertRaises(StopIteration):
                next(endless)
        self.assertIn("127.0.0.1:1", str(caught.exception))

    def test_a_wrong_key_is_an_error_that_says_so(self):
        other = os.path.join(self.directory, "other")
        if not os.path.exists(other):
            subprocess.run([_program.find(), "key", "new", other], check=True, capture_output=True)
        (worker,) = self.workers(1)
        # How long another worker is waited for.
        with mock.patch.dict(os.environ, WIDEMAP_WAIT_WORKERS="2s"):
            with self.assertRaises(widemap.PoolBroken) as caught:
                with widemap.Pool(workers=worker.address, key=other) as pool:
                    pool.map(abs, [1])
        self.assertIn("key", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
