"""What tests have in common."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(os.path.dirname(HERE), "src")
if os.path.isdir(SOURCE) and SOURCE not in sys.path and not os.environ.get("WIDEMAP_TEST_INSTALLED"):
    sys.path.insert(0, SOURCE)

from widemap import _program  # noqa: E402


def environment():
    """The environment of scripts: they find the package that is tested."""
    paths = [SOURCE] if SOURCE in sys.path else []
    return dict(os.environ, PYTHONPATH=os.pathsep.join(paths + [HERE]))


def run(script, *words, timeout=120):
    """Runs a script to its end."""
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=timeout)


@contextlib.contextmanager
def started(script):
    """A script that runs."""
    command = [sys.executable, "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment()) as process:
        try:
            yield process
        finally:
            process.kill()


def directory(test):
    """A directory for a test."""
    path = tempfile.mkdtemp()
    test.addCleanup(shutil.rmtree, path)
    return path


def is_alive(pid):
    """Whether a process runs, and is not only waited for."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def alive_after(pids, seconds):
    """Those of some processes that have not ended after so long."""
    until = time.monotonic() + seconds
    left = list(pids)
    while left and time.monotonic() < until:
        left = [pid for pid in left if is_alive(pid)]
        time.sleep(0.02)
    return left


class Worker:
    """A `widemap-worker` on loopback, with its key."""

    def __init__(self, key, *words):
        program = os.environ.get("WIDEMAP_WORKER_BIN", "widemap-worker")
        self.start([program, "--listen", "127.0.0.1:0", "--no-mdns", "--slots", "2", "--key", key, *words])

    def start(self, command):
        """Starts it, and waits until it listens."""
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.address = self.process.stdout.readline().split()[-1]

    def kill(self):
        """Ends it as a lost machine does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


class Service(Worker):
    """A `widemap serve` on loopback, with its workers."""

    def __init__(self, key, data, workers):
        command = [_program.find(), "serve", "--listen", "127.0.0.1:0", "--no-mdns", "--key", key, "--data", data]
        for worker in workers:
            command += ["--worker", worker.address]
        self.start(command)
