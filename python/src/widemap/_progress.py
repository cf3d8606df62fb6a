"""How far a call is, on standard error: by tqdm where that is installed, else a line that looks like its."""

import contextlib
import sys
import threading
import time

BAR = 10
EVERY_SECONDS = 0.1


class Progress:
    """Progress of one call, of so many values if that is known."""

    def __init__(self, total):
        self._total = total
        self._done = self._failed = 0
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._shown = 0.0
        self._is_over = False
        try:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total)
        except ImportError:
            self._bar = None
            self._show()

    def add(self, values, failed):
        """So many more have ended, of which so many have failed."""
        # Where nothing can be shown any more, the work goes on.
        with self._lock, contextlib.suppress(Exception):
            self._done += values
            self._failed += failed
            if self._bar is not None:
                if failed:
                    self._bar.set_postfix(failed=self._failed, refresh=False)
                self._bar.update(values)
            elif time.monotonic() - self._shown >= EVERY_SECONDS:
                self._show()

    def close(self):
        """It is over."""
        with self._lock, contextlib.suppress(Exception):
            if self._is_over:
                return
            self._is_over = True
            if self._bar is not None:
                self._bar.close()
            else:
                self._show()
                print(file=sys.stderr)

    def _show(self):
        self._shown = time.monotonic()
        passed = self._shown - self._begun
        rate = self._done / passed if passed > 0 else 0.0
        failed = ", %d failed" % self._failed if self._failed else ""
        if self._total:
            share = self._done / self._total
            bar = ("#" * int(share * BAR)).ljust(BAR)
            left = clock((self._total - self._done) / rate) if rate else "?"
            line = "%3.0f%%|%s| %d/%d [%s<%s, %.2fit/s%s]" % (
                share * 100, bar, self._done, self._total, clock(passed), left, rate, failed,
            )  # fmt: skip
        else:
            line = "%dit [%s, %.2fit/s%s]" % (self._done, clock(passed), rate, failed)
        sys.stderr.write("\r" + line + "\x1b[K" if sys.stderr.isatty() else "\r" + line)
        sys.stderr.flush()


def clock(seconds):
    """Seconds as people read them."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return "%d:%02d:%02d" % (hours, minutes, seconds) if hours else "%02d:%02d" % (minutes, seconds)
