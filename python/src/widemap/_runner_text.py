"""The program that interpreters of workers run, with what is special to one pool."""

import os
import pkgutil
import sys

import cloudpickle

from ._pickle import dumps

MAP, STARMAP, APPLY = range(3)

# What an initializer may be with its arguments to travel in the program itself.
INLINE_BYTES = 256 * 1024
INITIALIZER = "initializer.pickle"


def text(options, directory):
    """The program's text. What is too long for it is written to `directory`."""
    initializer, file = None, None
    if options.initializer is not None:
        initializer = dumps((options.initializer, tuple(options.initargs)))
        if len(initializer) > INLINE_BYTES:
            path = os.path.join(directory, INITIALIZER)
            with open(path, "wb") as written:
                written.write(initializer)
            initializer, file = None, path if options.is_local else INITIALIZER
            if not options.is_local:
                options.files.append(path)
    setup = {
        "python": "%d.%d" % sys.version_info[:2],
        "path": [path or os.getcwd() for path in sys.path] if options.is_local else [],
        "cloudpickle": (sources(), cloudpickle.__version__),
        "initializer": initializer,
        "initializer_file": file,
    }
    runner = pkgutil.get_data(__package__, "_runner.py").decode("utf-8")
    return "SETUP = %r\n%s" % (setup, runner)


def sources():
    """The modules of cloudpickle, as texts by their names; the package last."""
    directory = os.path.dirname(cloudpickle.__file__)
    names = sorted(name[:-3] for name in os.listdir(directory) if name.endswith(".py"))
    names.sort(key=lambda name: name == "__init__")
    found = {}
    for name in names:
        with open(os.path.join(directory, name + ".py"), encoding="utf-8") as file:
            found["cloudpickle" if name == "__init__" else "cloudpickle." + name] = file.read()
    return found
