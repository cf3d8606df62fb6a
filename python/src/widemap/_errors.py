"""What can go wrong with an item, or with everything at once."""

import multiprocessing


class RemoteError(Exception):
    """An item failed, and its exception cannot be had here: the text is the remote traceback."""


class ItemCrashed(RemoteError):
    """An item ended the interpreter that ran it: it called ``os._exit``, ran out of memory, or was killed."""


class ItemTimeout(RemoteError, multiprocessing.TimeoutError):
    """An item took longer than ``timeout``, and was ended."""


class PoolBroken(RuntimeError):
    """The process that gives out the work has ended: nothing that was not done will be."""


class PoolTerminated(RuntimeError):
    """The pool was terminated before this was done."""
