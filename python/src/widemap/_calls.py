"""What is asked of a pool, and how it is cut into what travels."""

import collections
import itertools
import struct
import sys
import threading
import time

HEAD = struct.Struct("<BII")

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
# How long values of an iterable that comes slowly wait for others to go with them.
LINGER_SECONDS = 0.002
# How many are taken before it is looked how many more may be.
FEED_VALUES = 64
# And how many more are taken at a time, whoever takes results, once somebody waits for the end.
JOINED_VALUES = 1024


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

    __slots__ = ("batches", "pieces", "bytes", "nanoseconds")

    def __init__(self):
        self.batches = []
        self.pieces = []
        self.bytes = 0
        self.nanoseconds = 0

    def has_room(self, nanoseconds, length):
        """Whether one more may go with them."""
        return (
            self.nanoseconds + nanoseconds <= PARCEL_NS
            and self.bytes + length <= PARCEL_BYTES
            and len(self.batches) < PARCEL_BATCHES
        )

    def add(self, batch, pickled, nanoseconds):
        """One more of them, which is among the batches already."""
        call = batch.call
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
        # What takes the values of such a call, and how many it has taken so far.
        self.feed = None
        self.pulled = 0
        self.taken = 0
        self.batches_out = 0
        self.is_over = False
        self.is_broken = False
        self.nanoseconds = None
        self.value_bytes = 1.0

    def weighed(self, length, items):
        """Learns how long the pickle of a value, or of its result, is."""
        self.value_bytes = max(0.9 * self.value_bytes, length / items)

    def measured(self, took, items):
        """Learns what a value costs: what is new counts more than what was."""
        cost = max(1.0, took / max(1, items))
        self.nanoseconds = cost if self.nanoseconds is None else (self.nanoseconds + 3 * cost) / 4

    def batches_max(self, slots, is_local):
        """How many batches may be on their way: those behind them become what is learned until then."""
        return most_at_once(BATCHES_PER_SLOT * slots, self.nanoseconds, is_local)

    def next_size(self, slots, longest=FIRST_BATCH_NS):
        """How many values the next batch has. `longest` is what it may take in nanoseconds."""
        if self.batch is not None:
            return self.batch
        if self.nanoseconds is None:
            return 1
        if self.total is None:
            size = min(BATCH_NS / self.nanoseconds, ITERATED_ITEMS_MAX)
        else:
            share = (self.total - self.taken) / (1.5 * slots)
            # Slots that wait get something soon; what is prepared meanwhile may take longer.
            most = longest if self.batches_out >= slots else BATCH_NS
            size = min(most / self.nanoseconds, max(LAST_BATCH_NS / self.nanoseconds, share))
        return max(1, min(int(size), int(BATCH_BYTES / self.value_bytes), BATCH_ITEMS_MAX))


def most_at_once(most, nanoseconds, is_local):
    """How many batches, or futures, may be on their way, where `most` is enough for the slots that are known."""
    # How many slots workers have is not known before something has come back, and what takes long goes one by one.
    is_unsized = not is_local and (nanoseconds is None or nanoseconds >= LAST_BATCH_NS)
    return max(most, UNSIZED_BATCHES) if is_unsized else most


class Feed:
    """Takes the values of a call from its iterable, in a thread of their own: one that waits for something, as for a
    result that is still to come, holds up nothing else, and what it has given before is on its way."""

    def __init__(self, call, changed, has_ended, is_joined, tell=lambda: None):
        self.ready = collections.deque()
        self.is_over = False
        self.error = None
        self._call = call
        self._changed = changed
        self._has_ended = has_ended
        self._is_joined = is_joined
        self._tell = tell
        # From how many values on it tells that they are there, and since when there are any.
        self._enough = 1
        self._since = None
        threading.Thread(target=self._run, name="widemap-feed", daemon=True).start()

    def _run(self):
        call, ready = self._call, self.ready
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._has_ended() or self._room() > 0)
                    if self._has_ended():
                        return
                    # Looked at often, as what is on its way may turn out to be long.
                    room = min(self._room(), FEED_VALUES)
                count = 0
                for value in itertools.islice(call.values, room):
                    ready.append(value)
                    count += 1
                    if self._has_ended():
                        return
                    if len(ready) >= self._enough:
                        self._announce()
                call.pulled += count
                if count < room:
                    break
        except BaseException as error:
            self.error = error
        self.is_over = True
        self._announce()

    def _room(self):
        """How many more values may be taken."""
        # Whoever waits for the end of the pool takes no results meanwhile.
        return max(self._call.window(), JOINED_VALUES if self._is_joined() else 0)

    def _announce(self):
        with self._changed:
            self._enough = sys.maxsize
            self._changed.notify_all()
        self._tell()

    def patience(self, size, is_fixed):
        """How many seconds to wait for `size` values; none at all is to take what is there, None to be told."""
        self._enough = size if is_fixed or self._since is not None else 1
        # Looked at after that: what comes later is told.
        there = len(self.ready)
        if there >= size or self.is_over:
            return 0
        if is_fixed or there == 0:
            return None
        now = time.monotonic()
        if self._since is None:
            self._since, self._enough = now, size
        return max(0, self._since + LINGER_SECONDS - now)

    def take(self, size):
        """Up to so many values; and whether these were the last."""
        self._since, self._enough = None, sys.maxsize
        # Looked at before that: once it is over there is nothing more behind what is there.
        is_over = self.is_over
        values = [self.ready.popleft() for _ in range(min(size, len(self.ready)))]
        return values, is_over and not self.ready
