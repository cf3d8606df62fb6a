"""The same as an engine, through a coordinator that serves."""

import os
import sys
import threading
from multiprocessing.pool import RemoteTraceback

from ._calls import Call, Feed
from ._engine import Engine, ended_with
from ._errors import PoolBroken, PoolTerminated

# Jobs that one pool has with a coordinator at a time.
JOBS_AT_ONCE = 4


class JobsEngine:
    """The same through a coordinator that serves: it takes jobs, and a job's input has an end. So calls are put
    together to jobs: those that come while others run are the next one."""

    def __init__(self, options, remote_traceback=RemoteTraceback):
        self.options = options
        self.slots = options.slots
        self._pid = os.getpid()
        self._remote_traceback = remote_traceback
        self._changed = threading.Condition()
        self._waiting = []
        self._again = []
        self._iterators = []
        self._running = set()
        self._is_closed = False
        self._is_joined = False
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
                call.feed = Feed(
                    call,
                    self._changed,
                    lambda: self._error is not None or call.is_broken,
                    lambda: self._is_joined,
                    self._go_on,
                )
                self._iterators.append(call)
        self._go_on()

    def wake(self):
        """A window has more room."""
        with self._changed:
            self._changed.notify_all()

    def close(self):
        """Nothing more is begun."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def terminate(self):
        """Ends everything at once."""
        if self._pid != os.getpid():
            return
        error = PoolTerminated("the pool was terminated before this was done")
        with self._changed:
            self._is_closed, self._error = True, error
            calls = self._waiting + self._iterators + [batch.call for batch in self._again]
            self._changed.notify_all()
            self._waiting, self._iterators, self._again = [], [], []
            running = list(self._running)
        for call in calls:
            ended_with(call, error)
        for engine in running:
            engine.terminate()

    def join(self):
        """Waits for all jobs to end."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._is_joined = True
            self._changed.notify_all()
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
            for call in [call for call in self._iterators if call.batches_out == 0]:
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
                ended_with(call, broken)
            with self._changed:
                self._changed.notify_all()
            return
        for call in calls:
            try:
                engine.add(call)
            except Exception as error:
                call.end(None, error)
        engine.close()

    def _part(self, call):
        """The next values of an iterable, as a call of their own; None if there are none."""
        if call.feed.patience(call.batch or 1, call.batch is not None) is None:
            return None
        first = call.taken
        most = sys.maxsize
        if call.batch is not None and not call.feed.is_over:
            most = len(call.feed.ready) // call.batch * call.batch
        values, call.is_over = call.feed.take(most)
        error = call.feed.error if call.is_over else None
        if error is not None and call.is_whole:
            del values[len(values) - len(values) % call.batch :]
        call.taken += len(values)
        if call.is_over:
            self._iterators.remove(call)
            self._changed.notify_all()
        if not values:
            if call.is_over:
                call.end(call.taken, error)
            return None
        call.batches_out = 1

        def deliver(place, results, errors):
            call.deliver(first + place, results, errors)

        def end(count, broken):
            with self._changed:
                if call.is_broken:
                    return
                if count is None:
                    call.is_broken = True
                    if call in self._iterators:
                        self._iterators.remove(call)
                    self._changed.notify_all()
                is_over, taken = call.is_over, call.taken
            if count is None:
                call.end(None, broken)
            elif is_over:
                call.end(taken, call.feed.error)

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
