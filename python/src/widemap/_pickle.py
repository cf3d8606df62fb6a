"""Pickles as they travel: functions and classes that workers cannot import go by value."""

import collections
import io
import pickle
import types

import cloudpickle

# Values of these types alone need nothing that pickle itself does not have.
PLAIN = frozenset({int, float, bool, str, bytes, type(None)})


def dumps(value):
    """What `value` is, pickled."""
    if is_plain(value):
        return pickle.dumps(value, 5)
    with io.BytesIO() as file:
        Pickler(file, 5).dump(value)
        return file.getvalue()


def is_plain(value):
    """Whether pickle alone does for a value, or for a batch of one."""
    kind = type(value)
    if kind in PLAIN:
        return True
    if kind is tuple or kind is list and len(value) == 1:
        return all(map(is_plain, value))
    return kind is dict and not value


REDUCE_CODE = cloudpickle.CloudPickler.dispatch_table[types.CodeType]


def reduce_code(code):
    """Code as cloudpickle has it, with the name of its file: newer versions leave that out, and a traceback from a
    worker should say where it was."""
    make, arguments = REDUCE_CODE(code)
    named = tuple(code.co_filename if argument == "<dynamic-code>" else argument for argument in arguments)
    return make, named


class Pickler(cloudpickle.CloudPickler):
    """cloudpickle's, but for code."""

    dispatch_table = collections.ChainMap({types.CodeType: reduce_code}, cloudpickle.CloudPickler.dispatch_table)
