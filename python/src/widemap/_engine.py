"""One `widemap` process, and the work that goes through it.

The process runs `widemap map --frames`: parcels of batches go in on its standard input, each with its length before
it, and come back on its standard output in the order in which they are done. Everything between (workers and how they
are found and proved, retries, lost machines) is the process's. Three threads serve it: one cuts batches and writes; one
reads, and hands results to the calls; one passes on what the functions print. Iterables whose end is not known have a
thread each (`Feed`).
"""

import collections
import itertools
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from multiprocessing.pool import RemoteTraceback

from . import _program
from ._calls import BATCH_ITEMS_MAX, BATCH_NS, BATCHES_PER_SLOT, FIRST_BATCH_NS, PARCEL_NS, Batch, Feed, Parcel
from ._errors import ItemCrashed, ItemTimeout, PoolBroken, PoolTerminated, RemoteError
from ._pickle import dumps
from ._runner_text import text

LENGTH = struct.Struct("<I")
FRAME = struct.Struct("<IQB")

WRITE_BYTES = 1 << 18
READ_BYTES = 1 << 18
# Functions whose cost is remembered, for the next call of the same.
COSTS_KEPT = 256
# Batches that a call becomes which is a part of a job: what its values cost is not known before it runs.
BATCHES_OF_JOB = 256
# How long a process that was told to end may take.
LEAVE_SECONDS = 1.0
TOLD_LINES = 20


# Those whose pipes a forked process should not hold open.
ENGINES = weakref.WeakSet()


def leave():
    """In a forked process: the pipes are the parent's, and its process ends when they are closed there."""
    for engine in list(ENGINES):
        for pipe in (engine._process.stdin, engine._process.stdout, engine._process.stderr):
            try:
                pipe.close()
            except OSError:
                pass
        engine._error = PoolBroken("the pool is of the process that this one was forked from")
    ENGINES.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=leave)


class Engine:
    """See the file's head."""

    def __init__(self, options, remote_traceback=RemoteTraceback, jobs=None, again=()):
        self.options = options
        self._remote_traceback = remote_traceback
        # Whose job this is, if it is one: nothing can be added to it once it runs.
        self._jobs = jobs
        # A process that was forked from this one has nothing to end.
        self._pid = os.getpid()
        # What the thread that writes has in its hands, if no table has it.
        self._held = None
        self.slots = options.slots
        # What ends a user's object under it may end this pool.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._calls = collections.deque()
        self._again = collections.deque(again)
        self._sent = {}
        self._number = 0
        self._is_closed = False
        self._is_joined = False
        self._error = None
        self._told = collections.deque(maxlen=TOLD_LINES)
        self._costs = {}
        self._busy_ns, self._busy_since = 0, time.perf_counter_ns()
        # Where it is not known how many slots there are, it is learned sooner from short batches.
        self._longest = FIRST_BATCH_NS if options.is_local else BATCH_NS
        self._directory = tempfile.mkdtemp(prefix="widemap-pool-")
        try:
            command = self._command()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                # Ctrl-C is this program's: it decides what becomes of the pool.
                start_new_session=True,
            )
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        self._threads = [
            threading.Thread(target=target, name="widemap-" + name, daemon=True)
            for name, target in (("write", self._write), ("read", self._read), ("stderr", self._pass_on))
        ]
        ENGINES.add(self)
        # In this order, as each waits for those behind it.
        for thread in reversed(self._threads):
            thread.start()

    def _command(self):
        path = os.path.join(self._directory, "pool.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text(self.options, self._directory))
        return [_program.find(), "map", "--frames", "--unordered", "--python", path + ":run"] + self.options.flags()

    # What the pool asks for.

    def add(self, call):
        """Begins a call."""
        with self._lock:
            self._refuse_if_over()
            call.nanoseconds, call.value_bytes = self._costs.get(call.function, (None, call.value_bytes))
            if call.window is not None:
                call.feed = Feed(call, self._changed, lambda: self._error is not None, lambda: self._is_joined)
            self._calls.append(call)
            self._changed.notify_all()

    def wake(self):
        """A window has more room."""
        with self._lock:
            self._changed.notify_all()

    def close(self):
        """Nothing more is begun."""
        with self._lock:
            self._is_closed = True
            self._changed.notify_all()

    def terminate(self):
        """Ends everything at once."""
        if self._pid != os.getpid():
            return
        self._fail(PoolTerminated("the pool was terminated before this was done"))
        self._end_process()
        # Its last thread removes what is in files. In the thread itself, as of a callback, nothing is waited for.
        if threading.current_thread() not in self._threads:
            self._threads[1].join(LEAVE_SECONDS)

    def join(self):
        """Waits for the process and the threads to end."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._is_joined = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def error(self):
        """Why nothing is done any more, if so."""
        return self._error

    # The threads.

    def _write(self):
        try:
            self._write_all()
        except BaseException as error:
            self._fail(error)
            self._end_process()
            raise
        finally:
            try:
                self._process.stdin.close()
            except OSError:
                pass

    def _write_all(self):
        descriptor = self._process.stdin.fileno()
        pieces, size, parcel = [], 0, None
        while True:
            batch = self._next(wait=not pieces and parcel is None)
            pickled = None if batch is None else self._pickled(batch)
            cost = 0 if pickled is None else self._cost(batch)
            is_posted = batch is None or (pickled is not None and parcel and not parcel.has_room(cost, len(pickled)))
            if is_posted and parcel is not None:
                size += LENGTH.size + parcel.bytes
                pieces.append(LENGTH.pack(parcel.bytes))
                pieces += parcel.pieces
                parcel = None
            if pickled is not None:
                # Before something is written, so that nobody but the tables holds what is lost with the process.
                parcel = self._load(parcel, batch, pickled, cost)
            if pieces and (batch is None or size >= WRITE_BYTES):
                try:
                    write_whole(descriptor, pieces[0] if len(pieces) == 1 else b"".join(pieces))
                except BrokenPipeError:
                    # The thread that reads finds out why, and ends what was on its way.
                    return
                pieces, size = [], 0
            elif batch is None:
                return

    def _next(self, wait):
        """The next batch. None if there is none now, or, if it was to be waited for, if there will be none."""
        while True:
            with self._lock:
                self._held = None
                while True:
                    if self._error is not None:
                        return None
                    if self._again:
                        self._held = self._again.popleft()
                        return self._held
                    call, patience = self._choose()
                    if call is not None:
                        break
                    if self._is_closed and not self._calls and (self._jobs is not None or not self._sent):
                        return None
                    if not wait:
                        return None
                    self._changed.wait(patience)
            batch = self._cut(call)
            if batch is not None:
                return batch

    def _choose(self):
        """A call that may send more, in turn; if there is none, when to look again at the latest."""
        soonest = None
        for _ in range(len(self._calls)):
            if not self._calls:
                break
            call = self._calls[0]
            self._calls.rotate(-1)
            if call.is_over:
                # It is the last one now.
                self._calls.pop()
                continue
            if self._jobs is None and self._is_full(call):
                continue
            if call.feed is not None:
                patience = call.feed.patience(call.next_size(self.slots), call.batch is not None)
                if patience is None:
                    continue
                if patience > 0:
                    soonest = patience if soonest is None else min(soonest, patience)
                    continue
            return call, None
        return None, soonest

    def _is_full(self, call):
        """Whether what comes next of a call should wait."""
        if call.batch is not None and (call.nanoseconds is not None or not self.options.is_local):
            # Of a fixed size it waits in the pipe.
            return False
        return call.batches_out >= call.batches_max(self.slots, self.options.is_local)

    def _cut(self, call):
        """Takes the next values of a call, outside of the lock: the iterable is the user's."""
        size = call.next_size(self.slots, self._longest)
        if self._jobs is not None and call.batch is None:
            size = max(1, min(-(-call.total // BATCHES_OF_JOB), BATCH_ITEMS_MAX))
        if call.total is not None:
            size = min(size, call.total - call.taken)
        values, error, is_over = [], None, False
        try:
            # What came before an exception stays.
            if call.feed is not None:
                values, is_over = call.feed.take(size)
                error = call.feed.error if is_over else None
                if error is not None and call.is_whole and len(values) < size:
                    values = []
            elif call.list is not None:
                values = call.list[call.taken : call.taken + size]
            else:
                values.extend(itertools.islice(call.values, size))
            if call.feed is None:
                is_over = len(values) < size or (call.total is not None and call.taken + len(values) >= call.total)
        except BaseException as raised:
            error, is_over = raised, True
        batch = Batch(call, call.taken, values) if values else None
        with self._lock:
            call.taken += len(values)
            call.is_over = is_over
            if is_over:
                call.values, call.list = iter(()), None
            if batch is not None:
                call.batches_out += 1
        if is_over and error is None and call.total is not None and call.taken < call.total:
            error = RuntimeError("what is mapped became shorter meanwhile")
        if is_over:
            call.end(call.taken, error)
            if self._error is not None:
                # It was ended with that before, and must not wait for results.
                ended_with(call, self._error)
        return batch

    def _pickled(self, batch):
        """The values of a batch as they are sent; None if they cannot be pickled, which its call is told."""
        call = batch.call
        try:
            pickled = dumps(batch.values)
            call.weighed(len(pickled), batch.items)
        except BaseException as error:
            self._settle(batch, [None] * batch.items, dict.fromkeys(range(batch.items), error), 0)
            return None
        return pickled

    def _cost(self, batch):
        """How long a batch should take, in nanoseconds. One that goes alone fills a parcel."""
        cost = batch.call.nanoseconds
        # A coordinator puts the items of its jobs together itself.
        is_alone = batch.is_alone or self._jobs is not None or self.options.goes_singly
        return PARCEL_NS + 1 if cost is None or is_alone else int(cost * batch.items)

    def _load(self, parcel, batch, pickled, cost):
        """Adds a batch to a parcel, or begins one with it: from now on it is on its way."""
        with self._lock:
            # What was in this thread's hands when everything ended was not seen there.
            ended, self._held = self._error, None
            if ended is None:
                if parcel is None:
                    parcel = Parcel()
                    self._sent[self._number] = parcel.batches
                    self._number += 1
                parcel.batches.append(batch)
                if len(self._sent) <= BATCHES_PER_SLOT * self.slots:
                    # As long as slots may wait for something, nothing waits for others.
                    cost = PARCEL_NS + 1
        if ended is not None:
            ended_with(batch.call, ended)
        elif parcel is not None:
            parcel.add(batch, pickled, cost)
        return parcel

    def _read(self):
        error = None
        try:
            self._read_all()
        except BaseException as raised:
            error = raised
            self._fail(error)
            self._end_process()
        self._threads[2].join()
        self._process.stdout.close()
        status = self._process.wait()
        with self._lock:
            is_left = self._calls or self._sent or self._again or self._held is not None
            is_done = self._is_closed and not is_left
        if error is None and not is_done:
            how = "was killed by signal %d" % -status if status < 0 else "has ended, with status %d" % status
            said = "".join("\n  " + line for line in self._told)
            error = PoolBroken("the process that gives out the work %s%s" % (how, said and ":" + said))
        if error is not None:
            self._fail(error)
            self._end_process()
        with self._lock:
            self._is_closed = True
            self._changed.notify_all()
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._jobs is not None:
            self._jobs.over(self)

    def _read_all(self):
        descriptor = self._process.stdout.fileno()
        kept = b""
        while True:
            data = os.read(descriptor, READ_BYTES)
            if not data:
                return
            kept = self._take(kept + data if kept else data)
            missing = 4 + LENGTH.unpack_from(kept)[0] - len(kept) if len(kept) >= 4 else 0
            if missing > READ_BYTES:
                # One that is long is not copied again with each read.
                kept = self._take(kept + read_whole(descriptor, missing))

    def _take(self, data):
        """Hands on the frames in `data`; what is left is the begin of another."""
        at, end = 0, len(data)
        view = memoryview(data)
        while end - at >= FRAME.size:
            length, number, has_failed = FRAME.unpack_from(data, at)
            if end - at < 4 + length:
                break
            body = view[at + FRAME.size : at + 4 + length]
            at += 4 + length
            if has_failed:
                self._failed(number, body)
            else:
                self._done(number, body)
        return data[at:]

    def _done(self, number, body):
        batches, again, at = self._batches(number), [], 0
        for batch in batches:
            (length,) = LENGTH.unpack_from(body, at)
            at += LENGTH.size
            again += self._returned(batch, body[at : at + length])
            at += length
        self._over(number, again)

    def _returned(self, batch, pickled):
        """A batch has come back: what of it goes once more."""
        batch.call.weighed(len(pickled), batch.items)
        try:
            took, values, errors = pickle.loads(pickled)
        except BaseException as error:
            if batch.items > 1:
                return self._singly(batch)
            self._settle(batch, [None], {0: cannot_be_read(error)}, 0)
            return []
        if values is None:
            # What was sent cannot be unpickled there.
            values, errors = [None] * batch.items, dict.fromkeys(range(batch.items), errors)
        if errors:
            errors = {index: exception(told, self._remote_traceback) for index, told in errors.items()}
            if batch.tries < self.options.retries:
                return self._retried(batch, values, errors, took)
        self._settle(batch, values, errors, took)
        return []

    def _failed(self, number, body):
        batches = self._batches(number)
        told = json.loads(bytes(body))
        may_be_others = told["status"] in ("crash", "timeout", "error")
        if may_be_others and len(batches) > 1:
            # One of them is not like the others.
            for batch in batches:
                batch.is_alone = True
            return self._over(number, batches)
        kinds = {"crash": ItemCrashed, "timeout": ItemTimeout}
        kind = kinds.get(told["status"], RemoteError)
        where = " (worker %s)" % told["worker"] if told.get("worker") else ""
        again = []
        for batch in batches:
            if may_be_others and batch.items > 1:
                again += self._singly(batch)
            else:
                error = kind("%s%s" % (told["error"], where))
                self._settle(batch, [None] * batch.items, dict.fromkeys(range(batch.items), error), 0)
        self._over(number, again)

    def _batches(self, number):
        """What a parcel has; nothing once everything has ended."""
        with self._lock:
            return self._sent.get(number, ())

    def _singly(self, batch):
        """The values of a batch, each alone: one of them is not like the others."""
        with self._lock:
            batch.call.batches_out += batch.items - 1
        return [
            Batch(batch.call, batch.first + index, [value], batch.tries, is_alone=True)
            for index, value in enumerate(batch.values)
        ]

    def _retried(self, batch, values, errors, took):
        """Values whose function has raised an exception, each alone; of the others it is told."""
        call = batch.call
        with self._lock:
            call.batches_out += len(errors) - 1
        for index in range(batch.items):
            if index not in errors:
                call.deliver(batch.first + index, [values[index]], {})
        self._busy(took)
        return [Batch(call, batch.first + index, [batch.values[index]], batch.tries + 1) for index in errors]

    def _over(self, number, again):
        """A parcel is done with, but for what goes once more."""
        with self._lock:
            if self._error is not None:
                return
            self._sent.pop(number)
            if self._jobs is None:
                self._again.extend(again)
            self._changed.notify_all()
        if self._jobs is not None and again:
            self._jobs.again(again)

    def _settle(self, batch, values, errors, took):
        call = batch.call
        if took:
            call.measured(took, batch.items)
            if len(self._costs) >= COSTS_KEPT:
                self._costs.clear()
            self._costs[call.function] = call.nanoseconds, call.value_bytes
            self._busy(took)
        batch.values = None
        call.deliver(batch.first, values, errors)
        with self._lock:
            call.batches_out -= 1
            self._changed.notify_all()

    def _busy(self, took):
        """Learns how many slots there are, of how many were busy at once: of workers that is not known."""
        if self.options.is_local:
            return
        now = time.perf_counter_ns()
        passed = now - self._busy_since
        # What a batch took counts when it ends, and no more of it than has passed.
        self._busy_ns += min(took, passed)
        if passed >= max(100_000_000, 4 * took):
            at_once = self._busy_ns / passed
            # Where most of what is on its way runs, more would.
            if at_once > self.slots:
                self.slots = int(at_once * 1.5) + 1
            else:
                self._longest = FIRST_BATCH_NS
            self._busy_ns, self._busy_since = 0, now

    def _pass_on(self):
        """What functions print comes out here; what the program itself says is kept for an error."""
        is_told = False
        with self._process.stderr as stderr:
            for line in iter(stderr.readline, b""):
                line = line.decode("utf-8", "replace")
                # What it says goes on in lines that are indented.
                is_told = line.startswith(("widemap: ", "error: ")) or (is_told and line.startswith("  "))
                if is_told:
                    self._told.append(line.rstrip("\n"))
                    continue
                try:
                    sys.stderr.write(line)
                    sys.stderr.flush()
                except Exception:
                    # Whoever closes it does not want it.
                    pass

    # The end.

    def _refuse_if_over(self):
        if self._error is not None:
            raise self._error
        if self._is_closed:
            raise ValueError("Pool not running")

    def _fail(self, error):
        """Ends all calls with an error."""
        with self._lock:
            if self._error is not None:
                return
            self._error = error
            # Of those that send nothing more only what is on its way counts.
            calls = {id(call): call for call in self._calls if not call.is_over}
            for batch in itertools.chain(*self._sent.values(), self._again):
                # The results of others are being handed over.
                if batch.values is not None:
                    calls[id(batch.call)] = batch.call
            self._calls.clear()
            self._sent.clear()
            self._again.clear()
            self._changed.notify_all()
        for call in calls.values():
            ended_with(call, error)

    def _end_process(self):
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def ended_with(call, error):
    """Ends a call with an error. What its user does then must not keep others from being ended."""
    try:
        call.end(None, error)
    except BaseException:
        traceback.print_exc()


def write_whole(descriptor, data):
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_whole(descriptor, length):
    """So many bytes; fewer at the end."""
    data = bytearray(length)
    view, got = memoryview(data), 0
    while got < length:
        read = os.readv(descriptor, [view[got : got + 16 * READ_BYTES]])
        if read == 0:
            break
        got += read
    return bytes(view[:got])


def cannot_be_read(error):
    """A result that cannot be unpickled here."""
    told = RemoteError("the result cannot be unpickled here: %s: %s" % (type(error).__name__, error))
    told.__cause__ = error
    return told


def exception(told, remote_traceback):
    """An exception as it came back, with the remote traceback as its cause."""
    pickled, trace = told
    error = None
    if pickled is not None:
        try:
            error = pickle.loads(pickled)
        except BaseException:
            error = None
    if not isinstance(error, BaseException):
        return RemoteError(trace.rstrip("\n"))
    error.__cause__ = remote_traceback('\n"""\n%s"""' % trace)
    return error
