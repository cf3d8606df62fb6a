"""What runs in the interpreters of workers: it is sent there as the text that this file is, behind the lines that
say what is special to a pool (see ``_runner_text``). Nothing of the package is installed there.

An item is some batches, one behind the other, each of them: what to do with each value (1 byte), the lengths of the
pickled function and of the pickled values (4 bytes each), the function, the values. Its result is, for each batch, the
length (4 bytes) of the pickled (nanoseconds, values, errors by their place in the batch), and that.
"""

import itertools
import pickle
import struct
import sys
import time

MAP, STARMAP, APPLY = range(3)
HEAD = struct.Struct("<BII")
LENGTH = struct.Struct("<I")
# Values of these types alone need nothing that pickle itself does not have.
PLAIN = frozenset({int, float, bool, str, bytes, type(None)})
# Functions that were used, by their pickles; of long ones, which hold data, only the last.
FUNCTIONS, LONG = {}, {}
KEPT, LONG_BYTES = 64, 1 << 16


def set_up():
    """Makes this interpreter one of the pool, before anything runs."""
    here = "%d.%d" % sys.version_info[:2]
    if here != SETUP["python"]:
        raise ImportError(
            "this worker has Python %s (%s), and the pool is of Python %s: pickled functions are of one of them; "
            "python= of the pool names an interpreter of the workers" % (here, sys.executable, SETUP["python"])
        )
    for path in SETUP["path"]:
        if path not in sys.path:
            sys.path.append(path)
    bring_cloudpickle()
    pickled = SETUP["initializer"]
    if SETUP["initializer_file"] is not None:
        with open(SETUP["initializer_file"], "rb") as file:
            pickled = file.read()
    if pickled is not None:
        initializer, arguments = pickle.loads(pickled)
        initializer(*arguments)


def bring_cloudpickle():
    """The pool's own cloudpickle, unless this interpreter has the same."""
    import importlib.util
    import types

    sources, version = SETUP["cloudpickle"]
    try:
        import cloudpickle

        if cloudpickle.__version__ == version:
            return
    except ImportError:
        pass
    for name in [name for name in sys.modules if name.split(".")[0] == "cloudpickle"]:
        del sys.modules[name]
    # All of them are known before any is run: the package imports its modules, and they each other.
    for name in sources:
        module = types.ModuleType(name)
        module.__file__ = "<%s of the pool>" % name
        module.__package__ = "cloudpickle"
        if name == "cloudpickle":
            module.__path__ = []
        sys.modules[name] = module
    for name in sources:
        module = sys.modules[name]
        if name != "cloudpickle":
            setattr(sys.modules["cloudpickle"], name.rpartition(".")[2], module)
        exec(compile(sources[name], module.__file__, "exec"), module.__dict__)


def function_of(pickled):
    known = LONG if len(pickled) > LONG_BYTES else FUNCTIONS
    try:
        return known[pickled]
    except KeyError:
        if len(known) >= (1 if known is LONG else KEPT):
            known.clear()
        function = known[pickled] = pickle.loads(pickled)
        return function


def dumps(value):
    """Pickled; what pickle itself cannot take, or would only name (classes of ``__main__``), goes by value."""
    import cloudpickle

    return cloudpickle.dumps(value, 5)


def packed(took, results, errors):
    if not errors and len(results) == 1 and type(results[0]) in PLAIN:
        return pickle.dumps((took, results, errors), 5)
    return dumps((took, results, errors))


def run(item):
    """The results of all batches of an item."""
    at, done = 0, []
    while at < len(item):
        kind, function_length, values_length = HEAD.unpack_from(item, at)
        at += HEAD.size
        function, at = item[at : at + function_length], at + function_length
        values, at = item[at : at + values_length], at + values_length
        result = run_batch(kind, function, values)
        done += (LENGTH.pack(len(result)), result)
    return b"".join(done)


def run_batch(kind, pickled_function, pickled_values):
    """The results of a batch."""
    began = time.perf_counter_ns()
    results, errors = [], {}
    try:
        function = function_of(bytes(pickled_function))
        values = pickle.loads(pickled_values)
    except BaseException as error:
        return dumps((0, None, told(error)))
    if kind == MAP:
        called = map(function, values)
    elif kind == STARMAP:
        called = itertools.starmap(function, values)
    else:
        called = (function(*arguments, **named) for arguments, named in values)
    # One that raises ends what is added; those behind it are added next.
    while len(results) < len(values):
        try:
            results.extend(called)
            if len(results) < len(values):
                # The end of an iterator, as it seemed.
                raise StopIteration
        except BaseException as error:
            errors[len(results)] = told(error)
            results.append(None)
    took = time.perf_counter_ns() - began
    try:
        return packed(took, results, errors)
    except BaseException:
        return packed(took, one_by_one(results, errors), errors)


def one_by_one(results, errors):
    """Of results that cannot be pickled all together, those that can."""
    good = []
    for index, value in enumerate(results):
        try:
            dumps(value)
            good.append(value)
        except BaseException as error:
            from multiprocessing.pool import MaybeEncodingError

            good.append(None)
            errors[index] = told(MaybeEncodingError(error, value))
    return good


def told(error):
    """An exception as it travels: itself, if it can be pickled and is one that a program should catch, and as text."""
    import traceback

    trace = error.__traceback__
    if trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
    except BaseException:
        text = "%s (and its text cannot be made)" % type(error).__name__
    pickled = None
    if isinstance(error, Exception):
        try:
            pickled = dumps(error)
        except BaseException:
            pass
    return pickled, text


set_up()
