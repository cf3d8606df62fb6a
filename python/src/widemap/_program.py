"""Where the programs are, and a console script for the one that is called by another name."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from typing import NoReturn


def find() -> str:
    """The path of ``widemap``.

    ``WIDEMAP_BIN`` names it; else it is the one that was installed with this package; else the first in ``PATH``.

    Raises:
        FileNotFoundError: if it is nowhere.
    """
    named = os.environ.get("WIDEMAP_BIN")
    if named:
        return named
    schemes = [None] + [scheme for scheme in sysconfig.get_scheme_names() if scheme.endswith("user")]
    for scheme in schemes:
        scripts = sysconfig.get_path("scripts", scheme) if scheme else sysconfig.get_path("scripts")
        path = os.path.join(scripts, "widemap")
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("widemap")
    if found is None:
        raise FileNotFoundError(
            "the program `widemap` is not here: `pip install ./python` in a clone of Widemap brings it along, "
            "and WIDEMAP_BIN names one that is elsewhere"
        )
    return found


def worker() -> NoReturn:
    """Becomes ``widemap-worker``: the same program, called by that name."""
    os.execv(find(), ["widemap-worker"] + sys.argv[1:])
