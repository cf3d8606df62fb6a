"""joblib and scikit-learn on workers, where they are installed."""

import os
import subprocess
import tempfile
import unittest

import support
from widemap import _program

try:
    import joblib

    import widemap.joblib
except ImportError:
    joblib = None
try:
    import sklearn
except ImportError:
    sklearn = None


@unittest.skipIf(joblib is None, "joblib is not installed")
class Backend(unittest.TestCase):
    """The backend, on this machine and on two workers."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.key = os.path.join(directory.name, "key")
        subprocess.run([_program.find(), "key", "new", self.key], check=True, capture_output=True)

    def two_workers(self):
        import sys

        workers = [support.Worker(self.key) for _ in range(2)]
        for worker in workers:
            self.addCleanup(worker.kill)
        return dict(workers=[worker.address for worker in workers], key=self.key, python=sys.executable)

    def test_parallel_gives_the_results_of_one(self):
        work = [joblib.delayed(pow)(x, 2) for x in range(200)]
        with joblib.parallel_config("widemap", n_jobs=2):
            self.assertEqual(joblib.Parallel()(work), [x * x for x in range(200)])
        with joblib.parallel_config("widemap", **self.two_workers()):
            self.assertEqual(joblib.Parallel()(work), [x * x for x in range(200)])

    def test_an_exception_is_raised_here(self):
        with joblib.parallel_config("widemap", n_jobs=2), self.assertRaises(ValueError):
            joblib.Parallel()(joblib.delayed(int)(x) for x in "12x4")

    @unittest.skipIf(sklearn is None, "scikit-learn is not installed")
    def test_a_grid_search_on_two_workers_gives_the_results_of_one(self):
        from sklearn.datasets import load_iris
        from sklearn.model_selection import GridSearchCV
        from sklearn.svm import SVC

        values, classes = load_iris(return_X_y=True)
        grid = {"C": [0.1, 1, 10], "kernel": ["linear", "rbf"]}
        alone = GridSearchCV(SVC(), grid, cv=3, n_jobs=1).fit(values, classes)
        with joblib.parallel_config("widemap", **self.two_workers()):
            spread = GridSearchCV(SVC(), grid, cv=3, n_jobs=-1).fit(values, classes)
        self.assertEqual(alone.best_params_, spread.best_params_)
        scores = [search.cv_results_["mean_test_score"].tolist() for search in (alone, spread)]
        self.assertEqual(*scores)


if __name__ == "__main__":
    unittest.main()
