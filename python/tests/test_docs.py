"""The examples of the package's docstrings, and the programs that README.md prints."""

import doctest
import os
import re
import unittest

import support
import widemap
from widemap import _executor, _pool


class Examples(unittest.TestCase):
    """Whatever is shown is so."""

    def test_docstrings(self):
        tried = 0
        for module in (widemap, _pool, _executor):
            failed, attempted = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
            self.assertEqual(failed, 0)
            tried += attempted
        self.assertGreater(tried, 10)

    def test_readme(self):
        with open(os.path.join(os.path.dirname(support.HERE), "README.md"), encoding="utf-8") as file:
            programs = re.findall(r"```python\n(.*?)```", file.read(), re.DOTALL)
        self.assertGreaterEqual(len(programs), 2)
        wanted = {"Pool": str([x * x for x in range(10)]), "Executor": "1024"}
        for program in programs:
            done = support.run(program)
            self.assertEqual(done.returncode, 0, done.stderr)
            (name,) = [name for name in wanted if "import " + name in program]
            self.assertEqual(done.stdout.strip(), wanted[name])


if __name__ == "__main__":
    unittest.main()
