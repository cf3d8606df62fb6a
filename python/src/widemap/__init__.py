"""`multiprocessing.Pool`, and `concurrent.futures.Executor`, on every machine you have.

>>> from widemap import Pool
>>> with Pool(2) as pool:
...     pool.map(len, ["a", "bc"])
[1, 2]
"""

import sys
from multiprocessing import TimeoutError

from ._errors import ItemCrashed, ItemTimeout, PoolBroken, PoolTerminated, RemoteError
from ._executor import BrokenExecutor, Executor
from ._pool import AsyncResult, Pool

__all__ = [
    "AsyncResult",
    "BrokenExecutor",
    "Executor",
    "ItemCrashed",
    "ItemTimeout",
    "Pool",
    "PoolBroken",
    "PoolTerminated",
    "RemoteError",
    "TimeoutError",
]

if "joblib" in sys.modules:
    # Where joblib is used, its backend is there: `joblib.parallel_config("widemap")`.
    from . import joblib  # noqa: F401
