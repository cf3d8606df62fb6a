"""One `widemap` process, and the work that goes through it.

The process runs `widemap map --frames`: parcels of batches go in on its standard input, each with its length before
it, and come back on its standard output in the order in which they are done. Everything between (workers and how they
are found and proved, retries, lost machines) is the process's. Three threads serve it: one writes, and pulls from the
iterables of the calls as it does; one reads, and hands results to the calls; one passes on what the functions print.
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
from multiprocessing.pool import RemoteTraceback

from . import _program
from ._errors import ItemCrashed, ItemTimeout, PoolBroken, PoolTerminated, RemoteError
from ._pickle import dumps
from ._runner_text import text

LENGTH = struct.Struct("<I")
HEAD = struct.Struct("<BII")
FRAME = struct.Struct("<IQB")

# What a batch should take: short enough that little runs twice where an interpreter dies, long enough that its
# way costs next to nothing. Of a list, whose end is known, the first ones may take longer: they get smaller towards
# the end, each two thirds of its slot's share of what is left (guided self-scheduling; Polychronopoulos and Kuck, 1987).
BATCH_NS = 20_000_000
FIRST_BATCH_NS = 500_000_000
LAST_BATCH_NS = 4_000_000
BATCH_ITEMS_MAX = 1 << 17
# The same of an iterable, of which no more is taken than is on its way.
ITERATED_ITEMS_MAX = 1 << 14
# And what its pickle, and that of its results, should not be longer than.
BATCH_BYTES = 2 << 20
# Batches that are on their way for each slot: one runs, one waits there, and one comes back.
BATCHES_PER_SLOT = 4
# The same for all slots, where it is not known how many there are, nor, perhaps, what a value costs.
UNSIZED_BATCHES = 1024
# Batches that take less travel in one parcel, with others, up to so much of each: a parcel has a cost of its own.
PARCEL_NS = 2_000_000
PARCEL_BATCHES = 256
PARCEL_BYTES = 1 << 16
WRITE_BYTES = 1 << 18
READ_BYTES = 1 << 18
# Functions whose cost is remembered, for the next call of the same.
COSTS_KEPT = 256
# How long a process that was told to end may take.
LEAVE_SECONDS = 1.0
TOLD_LINES = 20
# Batches that a call becomes which is a part of a job: what its values cost is not known before it runs.
BATCHES_OF_JOB = 256
# Jobs that one pool has with a coordinator at a time.
JOBS_AT_ONCE = 4


class Batch:
    """Values that are worked off together."""

    __slots__ = ("call", "first", "values", "items", "tries", "is_alone")

    def __init__(self, call, first, values, tries=0, is_alone=False):
        self.call = call
        self.first = first
        self.values = values
        self.items = len(values)
        self.tries = tries
        # Whether others would suffer from what becomes of it.
        self.is_alone = is_alone


class Parcel:
    """Batches that are about to travel together, as one item."""

    def __init__(self):
        self.batches = []
        self.pieces = []
        self.bytes = 0
        self.nanoseconds = 0

    def has_room(self, nanoseconds, length):
        """Whether one more may go with them."""
        return not self.batches or (
            self.nanoseconds + nanoseconds <= PARCEL_NS
            and self.bytes + length <= PARCEL_BYTES
            and len(self.batches) < PARCEL_BATCHES
        )

    def add(self, batch, pickled, nanoseconds):
        """One more of them."""
        call = batch.call
        self.batches.append(batch)
        self.pieces += (HEAD.pack(call.kind, len(call.function), len(pickled)), call.function, pickled)
        self.bytes += HEAD.size + len(call.function) + len(pickled)
        self.nanoseconds += nanoseconds


class Call:
    """Something that is to be done with each of some values.

    `deliver(first, values, errors)` is called with the results of a batch, in the thread that reads; `errors` has the
    exceptions of those that failed, by their place in it. `end(count, error)` is called once, when it is known how many
    values there are: with the exception of the iterable if that is what ended it.
    """

    def __init__(self, kind, function, values, deliver, end, total=None, batch=None, window=None, whole=False):
        self.kind = kind
        self.function = function
        # A list is cut, which takes less than to go through it.
        self.list = values if type(values) is list else None
        self.values = iter(values)
        self.deliver = deliver
        self.end = end
        self.total = total
        # A fixed number of values a batch; and whether one that is cut short by an exception counts for nothing.
        self.batch = batch
        self.is_whole = whole
        # Tells how many more values may be on their way; None is any number.
        self.window = window
        self.taken = 0
        self.batches_out = 0
        self.is_over = False
        self.nanoseconds = None
        self.value_bytes = 1.0

    def weighed(self, length, items):
        """Learns how long the pickle of a value, or of its result, is."""
        self.value_bytes = max(0.9 * self.value_bytes, length / items)

    def measured(self, took, items):
        """Learns what a value costs: what is new counts more than what was."""
        cost = max(1.0, took / max(1, items))
        self.nanoseconds = cost if self.nanoseconds is None else (self.nanoseconds + 3 * cost) / 4

    def next_size(self, slots):
        """How many values the next batch has."""
        if self.batch is not None:
            return self.batch
        if self.nanoseconds is None:
            return 1
        if self.total is None:
            size = min(BATCH_NS / self.nanoseconds, ITERATED_ITEMS_MAX)
        else:
            share = (self.total - self.taken) / (1.5 * slots)
            # Slots that wait get something soon; what is prepared meanwhile may take longer.
            most = FIRST_BATCH_NS if self.batches_out >= slots else BATCH_NS
            size = min(most / self.nanoseconds, max(LAST_BATCH_NS / self.nanoseconds, share))
        return max(1, min(int(size), int(BATCH_BYTES / self.value_bytes), BATCH_ITEMS_MAX))


class Engine:
    """See the file's head."""

    def __init__(self, options, remote_traceback=RemoteTraceback, jobs=None, again=()):
        self.options = options
        self._remote_traceback = remote_traceback
        # Whose job this is, if it is one: nothing can be added to it once it runs.
        self._jobs = jobs
        self.slots = options.slots
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._calls = collections.deque()
        self._again = collections.deque(again)
        self._sent = {}
        self._number = 0
        self._is_closed = False
        self._error = None
        self._told = collections.deque(maxlen=TOLD_LINES)
        self._costs = {}
        self._busy_ns, self._longest_ns, self._busy_since = 0, 0, time.perf_counter_ns()
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
            call.nanoseconds = self._costs.get(call.function)
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
        self._fail(PoolTerminated("the pool was terminated before this was done"))
        self._end_process()
        # Its last thread removes what is in files. In the thread itself, as of a callback, nothing is waited for.
        if threading.current_thread() not in self._threads:
            self._threads[1].join(LEAVE_SECONDS)

    def join(self):
        """Waits for the process and the threads to end."""
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
        except BrokenPipeError:
            # The thread that reads finds out why.
            pass
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
        pieces, size, parcel = [], 0, Parcel()
        while True:
            batch = self._next(wait=not pieces and not parcel.batches)
            pickled = None if batch is None else self._pickled(batch)
            if pickled is not None:
                cost = self._cost(batch)
                if not parcel.has_room(cost, len(pickled)):
                    size += self._post(parcel, pieces)
                    parcel = Parcel()
                parcel.add(batch, pickled, cost)
            elif batch is None and parcel.batches:
                size += self._post(parcel, pieces)
                parcel = Parcel()
            if pieces and (batch is None or size >= WRITE_BYTES):
                write_whole(descriptor, pieces[0] if len(pieces) == 1 else b"".join(pieces))
                pieces, size = [], 0
            elif batch is None:
                return

    def _next(self, wait):
        """The next batch. None if there is none now, or, if it was to be waited for, if there will be none."""
        while True:
            with self._lock:
                while True:
                    if self._error is not None:
                        return None
                    if self._again:
                        return self._again.popleft()
                    call = self._choose()
                    if call is not None:
                        break
                    if self._is_closed and not self._calls and (self._jobs is not None or not self._sent):
                        return None
                    if not wait:
                        return None
                    self._changed.wait()
            batch = self._cut(call)
            if batch is not None:
                return batch

    def _choose(self):
        """A call that may send more: in turn."""
        for _ in range(len(self._calls)):
            call = self._calls[0]
            self._calls.rotate(-1)
            if call.is_over:
                self._calls.remove(call)
                continue
            if self._jobs is None and self._is_full(call):
                continue
            if call.window is not None and call.window() <= 0:
                continue
            return call
        return None

    def _is_full(self, call):
        """Whether what comes next of a call should wait, to become what is learned until then."""
        is_known = call.nanoseconds is not None
        if call.batch is not None and (is_known or not self.options.is_local):
            # Of a fixed size it waits in the pipe.
            return False
        most = BATCHES_PER_SLOT * self.slots
        if not self.options.is_local and not (is_known and call.nanoseconds < LAST_BATCH_NS):
            # How many slots workers have is not known either, and values that take long go one by one.
            most = max(most, UNSIZED_BATCHES)
        return call.batches_out >= most

    def _cut(self, call):
        """Takes the next values of a call, outside of the lock: the iterable is the user's."""
        size = call.next_size(self.slots)
        if self._jobs is not None and call.batch is None:
            size = max(1, min(-(-call.total // BATCHES_OF_JOB), BATCH_ITEMS_MAX))
        if call.window is not None:
            size = max(1, min(size, call.window()))
        values, error, is_over = [], None, False
        try:
            # What came before an exception stays.
            if call.list is not None:
                values = call.list[call.taken : call.taken + size]
            else:
                values.extend(itertools.islice(call.values, size))
            is_over = len(values) < size or (call.total is not None and call.taken + len(values) >= call.total)
        except BaseException as raised:
            error, is_over = raised, True
            if call.is_whole:
                values = []
        batch = Batch(call, call.taken, values) if values else None
        with self._lock:
            call.taken += len(values)
            call.is_over = is_over
            if is_over:
                call.values, call.list = iter(()), None
            if batch is not None:
                call.batches_out += 1
        if is_over:
            call.end(call.taken, error)
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

    def _post(self, parcel, pieces):
        """Adds a parcel to what is written next; how many bytes that is."""
        with self._lock:
            # What was in this thread's hands when everything ended was not seen there.
            ended = self._error
            if ended is None:
                self._sent[self._number] = parcel.batches
                self._number += 1
        if ended is not None:
            for batch in parcel.batches:
                batch.call.end(None, ended)
            return 0
        pieces.append(LENGTH.pack(parcel.bytes))
        pieces += parcel.pieces
        return LENGTH.size + parcel.bytes

    def _read(self):
        error = None
        try:
            self._read_all()
        except BaseException as raised:
            error = raised
        self._threads[2].join()
        self._process.stdout.close()
        status = self._process.wait()
        with self._lock:
            is_done = self._is_closed and not self._calls and not self._sent and not self._again
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
            self._costs[call.function] = call.nanoseconds
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
        self._busy_ns += took
        self._longest_ns = max(self._longest_ns, took)
        now = time.perf_counter_ns()
        passed = now - self._busy_since
        # What a batch took counts when it ends: of a shorter time it would be too much.
        if passed >= max(100_000_000, 4 * self._longest_ns):
            at_once = self._busy_ns / passed
            # Where most of what is on its way runs, more would.
            if at_once > self.slots:
                self.slots = int(at_once * 1.5) + 1
            self._busy_ns, self._longest_ns, self._busy_since = 0, 0, now

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
            calls = {id(call): call for call in self._calls}
            for batch in itertools.chain(*self._sent.values(), self._again):
                calls[id(batch.call)] = batch.call
            self._calls.clear()
            self._sent.clear()
            self._again.clear()
            self._changed.notify_all()
        for call in calls.values():
            call.end(None, error)

    def _end_process(self):
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


class JobsEngine:
    """The same through a coordinator that serves: it takes jobs, and a job's input has an end. So calls are put
    together to jobs: those that come while others run are the next one."""

    def __init__(self, options, remote_traceback=RemoteTraceback):
        self.options = options
        self.slots = options.slots
        self._remote_traceback = remote_traceback
        self._changed = threading.Condition()
        self._waiting = []
        self._again = []
        self._iterators = []
        self._running = set()
        self._is_closed = False
        self._error = None

    def add(self, call):
        """Begins a call."""
        with self._changed:
            if self._error is not None:
                raise self._error
            if self._is_closed:
                raise ValueError("Pool not running")
            if call.window is None:
                self._waiting.append(call)
            else:
                self._iterators.append(call)
        self._go_on()

    def wake(self):
        """A window has more room."""
        self._go_on()

    def close(self):
        """Nothing more is begun."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def terminate(self):
        """Ends everything at once."""
        error = PoolTerminated("the pool was terminated before this was done")
        with self._changed:
            self._is_closed, self._error = True, error
            calls = self._waiting + self._iterators + [batch.call for batch in self._again]
            self._waiting, self._iterators, self._again = [], [], []
            running = list(self._running)
        for call in calls:
            call.end(None, error)
        for engine in running:
            engine.terminate()

    def join(self):
        """Waits for all jobs to end."""
        with self._changed:
            self._changed.wait_for(
                lambda: not (self._waiting or self._again or self._iterators or self._running)
            )

    def error(self):
        """Why nothing is done any more, if so."""
        return self._error

    def _go_on(self):
        """Begins the next job, if there is something for one and not too many run."""
        with self._changed:
            if self._error is not None or len(self._running) >= JOBS_AT_ONCE:
                return
            calls, self._waiting = self._waiting, []
            for call in [call for call in self._iterators if call.batches_out == 0 and call.window() > 0]:
                part = self._part(call)
                calls += [part] if part is not None else []
            if not calls and not self._again:
                return
            again, self._again = self._again, []
            try:
                engine = Engine(self.options, self._remote_traceback, self, again)
            except Exception as error:
                broken = PoolBroken("the process that gives out the work cannot be started: %s" % error)
                engine = None
            else:
                self._running.add(engine)
        if engine is None:
            for call in calls + [batch.call for batch in again]:
                call.end(None, broken)
            return
        for call in calls:
            try:
                engine.add(call)
            except Exception as error:
                call.end(None, error)
        engine.close()

    def _part(self, call):
        """The next values of an iterable, as a call of their own; None if there are none."""
        first, values, error = call.taken, [], None
        most = call.window()
        try:
            values.extend(itertools.islice(call.values, most))
        except BaseException as raised:
            error = raised
        call.taken += len(values)
        if error is not None or len(values) < most:
            call.is_over = True
            self._iterators.remove(call)
        if not values:
            call.end(call.taken, error)
            return None
        call.batches_out = 1

        def deliver(place, results, errors):
            call.deliver(first + place, results, errors)

        def end(count, broken):
            if count is None:
                with self._changed:
                    if call in self._iterators:
                        self._iterators.remove(call)
                call.end(None, broken)
            elif call.is_over:
                call.end(call.taken, error)

        return Call(call.kind, call.function, values, deliver, end, total=len(values), batch=call.batch)

    def again(self, batches):
        """Batches go once more, with the next job."""
        with self._changed:
            error = self._error
            if error is None:
                self._again += batches
        if error is not None:
            for batch in batches:
                batch.call.end(None, error)

    def over(self, engine):
        """A job has ended: those who iterate go on."""
        with self._changed:
            self._running.discard(engine)
            self.slots = max(self.slots, engine.slots)
            for call in self._iterators:
                call.batches_out = 0
            self._changed.notify_all()
        self._go_on()


def make(options, remote_traceback=RemoteTraceback):
    """What fits the options."""
    return (JobsEngine if options.coordinator else Engine)(options, remote_traceback)


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
