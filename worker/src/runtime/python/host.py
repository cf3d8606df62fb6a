"""Runs a user's function over chunks of items, for a widemap worker: one interpreter for each slot.

Standard input is a socket to the worker, both ways; standard output is a shared page that tells which item
runs. Both are taken over before anything of the user's is loaded, so that what it prints, however it does so,
reaches standard error and never the results. The frames are described in python/frames.rs.
"""

import os
import struct
import sys
import threading

REQUEST = struct.Struct("<IQ")
ANSWER = struct.Struct("<BIQQ")
FAULT = struct.Struct("<IBI")
READY, UNUSABLE, SAID, DONE = 1, 2, 3, 4
ERROR, NOT_JSON, TOO_MUCH = 0, 1, 2

# The shared page: which item of the chunk runs, and since when (monotonic, in nanoseconds).
ITEM, SINCE = 0, 1
NO_ITEM, ENCODING = (1 << 64) - 1, (1 << 64) - 2

# Results go to the worker at least as often, so that little runs twice after a crash.
FLUSH_NS = 50_000_000
# What one batch of results should not be larger than, by the size of the last one.
BATCH_BYTES = 4 << 20
SAID_BYTES = 4096
MESSAGE_BYTES = 16 * 1024
OURS = __file__


class Worker:
    """The worker at the other end of the socket."""

    def __init__(self):
        import mmap

        page = os.dup(1)
        self.page = memoryview(mmap.mmap(page, 4096)).cast("Q")
        self.page[ITEM] = NO_ITEM
        os.close(page)
        self.socket = os.dup(0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)
        self.is_forked = False
        self.lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forked)

    def forked(self):
        self.is_forked = True

    def read(self, length):
        """Exactly so many bytes; nothing at the end."""
        data = bytearray(length)
        view, got = memoryview(data), 0
        while got < length:
            read = os.readv(self.socket, [view[got : got + (1 << 24)]])
            if read == 0:
                return None
            got += read
        return data

    def tell(self, kind, number=0, meta=b"", body=b""):
        pieces = [ANSWER.pack(kind, number, len(meta), len(body)), meta, body]
        if len(body) < 1 << 16:
            pieces = [b"".join(pieces)]
        # Other threads of the user's may print meanwhile.
        with self.lock:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(self.socket, view[: 1 << 24]) :]


def unusable(worker, message):
    worker.tell(UNUSABLE, body=message.encode("utf-8", "replace"))
    sys.exit(0)


def standard_error(worker):
    """Makes sys.stdout and sys.stderr tell the worker what the item that runs has printed."""
    import io

    class Said(io.RawIOBase):
        def __init__(self):
            self.pending = bytearray()
            self.lock = threading.RLock()

        def writable(self):
            return True

        def fileno(self):
            return 2

        def write(self, data):
            data = bytes(data)
            if worker.is_forked:
                # The socket is the parent's.
                os.write(2, data)
                return len(data)
            with self.lock:
                self.pending += data
                if b"\n" in data or len(self.pending) > SAID_BYTES:
                    self.tell()
            return len(data)

        def tell(self):
            with self.lock:
                said, self.pending = self.pending, bytearray()
                item = worker.page[ITEM]
                number = item if item < NO_ITEM - 1 else 0
                if said:
                    worker.tell(SAID, number, body=bytes(said[-(1 << 16) :]))

    said = Said()
    text = io.TextIOWrapper(said, "utf-8", "backslashreplace", line_buffering=False, write_through=True)
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = text
    return said


def load(worker, setup, source):
    """The user's function."""
    import linecache
    import types

    shown, name = setup["shown"], setup["function"]
    path = setup["path"]
    for directory in reversed(setup["search"]):
        sys.path.insert(0, directory)
    sys.argv = [path]
    sys.dont_write_bytecode = sys.dont_write_bytecode or not setup["bytecode"]
    stem = os.path.splitext(os.path.basename(path))[0]
    # One that is called as something of the standard library shall not stand in its way.
    module = types.ModuleType(stem if stem not in sys.modules else "__widemap__")
    module.__file__ = path
    sys.modules[module.__name__] = module
    try:
        code = compile(source, path, "exec", dont_inherit=True)
        import importlib.util

        lines = importlib.util.decode_source(source).splitlines(True)
        linecache.cache[path] = (len(source), None, lines, path)
        exec(code, module.__dict__)
    except BaseException as error:
        unusable(worker, "`%s` cannot be loaded by %s: %s%s" % (shown, python(), where(error, path), cure(error)))
    function = find(worker, module, shown, name)
    if setup["initializer"] is not None:
        initializer = find(worker, module, shown, setup["initializer"])
        try:
            settle(initializer())
        except BaseException as error:
            text = "the initializer `%s` of `%s` failed: %s" % (setup["initializer"], shown, where(error, path))
            unusable(worker, text)
    return function


def python():
    return "%s (Python %d.%d.%d)" % ((sys.executable,) + tuple(sys.version_info[:3]))


def cure(error):
    if isinstance(error, ModuleNotFoundError):
        return " (--file brings a module of your own along, --python-bin names another interpreter)"
    return ""


def where(error, path):
    """The last line of a traceback, and the line of the user's file that it is of."""
    import traceback

    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == path:
            line = frame.lineno
    last = traceback.format_exception_only(type(error), error)[-1].strip()
    return last if line is None else "line %d: %s" % (line, last)


def find(worker, module, shown, name):
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            import difflib

            known = [
                key
                for key, value in vars(module).items()
                if callable(value) and not key.startswith("_") and getattr(value, "__module__", "") == module.__name__
            ]
            near = difflib.get_close_matches(name, known, 1) or known[:5]
            text = "`%s` has no function `%s`" % (shown, name)
            if near:
                text += " (it has: %s)" % ", ".join(near)
            unusable(worker, text)
        found = getattr(found, part)
    if not callable(found):
        unusable(worker, "`%s` of `%s` is no function: it is of type %s" % (name, shown, type(found).__name__))
    return found


def limited(function, seconds):
    """Calls `function` where the system ends the interpreter after so many seconds of processor time."""
    import resource
    import time

    most = resource.getrlimit(resource.RLIMIT_CPU)[1]
    kind, set_limit, used = resource.RLIMIT_CPU, resource.setrlimit, time.process_time

    def call(value):
        # What is used so far is rounded down, and the limit is one of whole seconds.
        set_limit(kind, (int(used()) + seconds + 1, most))
        return function(value)

    return call


PLAIN = frozenset({int, str, float, bool, type(None), list, dict, tuple})
LOOP = []


def settle(result):
    """What a result comes to: coroutines are awaited, generators run to their end."""
    kind = type(result)
    if kind in PLAIN:
        return result
    import inspect

    if inspect.isgenerator(result):
        return list(result)
    if inspect.isasyncgen(result):

        async def gather():
            return [value async for value in result]

        return run_async(gather())
    if inspect.isawaitable(result):

        async def wait():
            return await result

        return settle(run_async(wait()))
    return result


def run_async(coroutine):
    import asyncio

    if not LOOP:
        LOOP.append(asyncio.new_event_loop())
        asyncio.set_event_loop(LOOP[0])
    return LOOP[0].run_until_complete(coroutine)


def told(error):
    """A traceback without what is ours of it; its end, if it is long."""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == OURS:
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, trace)).rstrip("\n")
    except BaseException:
        text = "%s (and its text cannot be made)" % type(error).__name__
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > MESSAGE_BYTES:
        data = b"[...]\n" + data[6 - MESSAGE_BYTES :].decode("utf-8", "ignore").encode()
    return data


class Unreadable:
    """An item that is not what it should be."""

    def __init__(self, error):
        self.error = error


class Json:
    """Items and results are values of JSON. A chunk is read and written at once: what is put between the
    items is unknown to them, so that none can be taken for a part of its neighbour."""

    # What is added to each result.
    frame = 1

    def __init__(self, separator, max_output):
        import json

        self.loads = json.loads
        mark = "widemap-%s" % os.urandom(16).hex()
        self.mark = mark
        self.between = b',"%s",' % mark.encode()
        self.between_text = ',"%s",' % mark
        self.separator = separator
        self.max_output = max_output
        self.compact = json.JSONEncoder(separators=(",", ":")).encode
        # A text of JSON has no end of a line in it but for these.
        self.lines = json.JSONEncoder(separators=("\n", ":")).encode

    def decode(self, count, data):
        if data[-1:] == self.separator:
            del data[-1:]
        if b"," in data or b'"' in data or b"[" in data or b"{" in data:
            try:
                found = self.loads("[" + data.replace(self.separator, self.between).decode() + "]")
                if len(found) == 2 * count - 1 and found[1::2].count(self.mark) == count - 1:
                    return found[::2]
            except Exception:
                pass
        else:
            # Numbers and words alone: each comma is one of ours.
            try:
                found = self.loads("[" + data.replace(self.separator, b",").decode() + "]")
                if len(found) == count:
                    return found
            except Exception:
                pass
        return [self.decode_one(item) for item in data.split(self.separator)]

    def decode_one(self, item):
        try:
            return self.loads(item.decode())
        except Exception as error:
            return Unreadable(error)

    def encode(self, values):
        """The results, a line each, and their lengths where these are not told by the ends of lines."""
        if type(values[0]) not in (list, dict, tuple):
            text = self.lines(values)
            if text.count("\n") == len(values) - 1:
                return (text[1:-1] + "\n").encode(), None
        marked = [self.mark] * (2 * len(values) - 1)
        marked[::2] = values
        text = self.compact(marked)[1:-1].replace(self.between_text, "\n")
        return (text + "\n").encode(), None

    def encode_one(self, value):
        return (self.compact(value) + "\n").encode()


class Text:
    """Items are strings, and so are results; others are printed as JSON. Bytes that are not UTF-8 come and
    go as they are (surrogateescape)."""

    frame = 1

    def __init__(self, separator, max_output):
        import json

        self.compact = json.JSONEncoder(separators=(",", ":")).encode
        self.separator = separator
        self.max_output = max_output

    def decode(self, count, data):
        if data[-1:] == self.separator:
            del data[-1:]
        return data.decode("utf-8", "surrogateescape").split(self.separator.decode())

    def encode(self, values):
        parts = [self.encode_one(value) for value in values]
        return b"".join(parts), [len(part) for part in parts]

    def encode_one(self, value):
        text = value if isinstance(value, str) else self.compact(value)
        return text.encode("utf-8", "surrogateescape") + self.separator


class Bytes:
    """Items are bytes with their lengths before them, and so are results."""

    frame = 4

    def __init__(self, max_output):
        self.length = struct.Struct("<I")
        self.max_output = max_output

    def decode(self, count, data):
        items, view, at = [], memoryview(data), 0
        for _ in range(count):
            (length,) = self.length.unpack_from(data, at)
            items.append(view[at + 4 : at + 4 + length])
            at += 4 + length
        return items

    def encode(self, values):
        parts = []
        for value in values:
            parts += [self.length.pack(len(value)), value]
        return b"".join(parts), [4 + len(value) for value in values]

    def encode_one(self, value):
        return self.length.pack(len(value)) + value


class Chunk:
    """The results of a chunk, on their way to the worker."""

    def __init__(self, worker, form, clock):
        self.worker = worker
        self.form = form
        self.clock = clock
        self.most = 1 << 20

    def flush(self, items, begun, results, faults):
        """Tells of the next items: the results of some, and why the others have none."""
        self.worker.page[ITEM] = ENCODING
        body, lengths = b"", []
        if results:
            try:
                body, lengths = self.form.encode(results)
            except BaseException:
                body = None
            if body is None or len(body) - self.form.frame * len(results) > self.form.max_output:
                body, lengths = self.one_by_one(items, results, faults)
            self.most = 1 << 20
            if len(body) > BATCH_BYTES:
                self.most = max(1, len(results) * BATCH_BYTES // len(body))
        meta = [struct.pack("<QI", (self.clock() - begun) // 1000, len(faults))]
        for index in sorted(faults):
            kind, message = faults[index]
            meta += [FAULT.pack(index, kind, len(message)), message]
        meta.append(struct.pack("<I", 0 if lengths is None else len(lengths)))
        if lengths:
            meta.append(struct.pack("<%dQ" % len(lengths), *lengths))
        self.worker.tell(DONE, items, b"".join(meta), body)

    def one_by_one(self, items, results, faults):
        parts, results = [], iter(results)
        for index in range(items):
            if index in faults:
                continue
            self.worker.page[ITEM] = ENCODING
            value = next(results)
            try:
                part = self.form.encode_one(value)
            except BaseException as error:
                faults[index] = (ERROR, told(error))
                continue
            if len(part) - self.form.frame > self.form.max_output:
                text = "returned more than %d bytes (--max-output)" % self.form.max_output
                faults[index] = (TOO_MUCH, text.encode())
                continue
            parts.append(part)
        return b"".join(parts), [len(part) for part in parts]

    def run(self, function, values, said):
        page, clock, worker = self.worker.page, self.clock, self.worker
        results, faults = [], {}
        append, plain = results.append, PLAIN
        first = index = 0
        begun = now = clock()
        for index, value in enumerate(values):
            now = clock()
            if now - begun > FLUSH_NS and index > first or index - first >= self.most:
                self.flush(index - first, begun, results, faults)
                results, faults = [], {}
                append, first, begun = results.append, index, clock()
                now = begun
            page[SINCE] = now
            page[ITEM] = index
            try:
                if value.__class__ is Unreadable:
                    faults[index - first] = (NOT_JSON, unreadable(value.error))
                    continue
                result = function(value)
                if result.__class__ not in plain:
                    result = settle(result)
                append(result)
            except BaseException as error:
                if worker.is_forked:
                    # A child that the function made is not ours to go on in.
                    leave(error)
                faults[index - first] = (ERROR, told(error))
            if said.pending:
                said.tell()
        self.flush(len(values) - first, begun, results, faults)
        page[ITEM] = NO_ITEM


def unreadable(error):
    if isinstance(error, UnicodeError):
        return b"the item is not UTF-8"
    return ("the item is not JSON: %s" % error).encode("utf-8", "backslashreplace")[:500]


def leave(error):
    """Ends a forked child as Python would."""
    status = 1
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    os.write(2, told(error) + b"\n" if status else b"")
    os._exit(status & 0xFF)


def main():
    import gc
    import json
    import time

    worker = Worker()
    head = worker.read(8)
    if head is None:
        return
    setup_bytes, source_bytes = struct.unpack("<II", head)
    setup = json.loads(worker.read(setup_bytes).decode())
    source = bytes(worker.read(source_bytes))
    if sys.version_info < (3, 9):
        unusable(worker, "%s is too old: Python 3.9 or later is needed (--python-bin names another one)" % python())
    said = standard_error(worker)
    function = load(worker, setup, source)
    said.tell()
    gc.freeze()
    worker.tell(READY)
    if setup["cpu_seconds"]:
        function = limited(function, setup["cpu_seconds"])
    if setup["separator"] is None:
        form = Bytes(setup["max_output"])
    else:
        separator = bytes([setup["separator"]])
        form = (Text if setup["text"] else Json)(separator, setup["max_output"])
    chunk = Chunk(worker, form, time.monotonic_ns)
    while True:
        head = worker.read(REQUEST.size)
        if head is None:
            return
        count, length = REQUEST.unpack(head)
        data = worker.read(length)
        if data is None:
            return
        chunk.run(function, form.decode(count, data), said)


main()
