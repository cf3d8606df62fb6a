"""multiprocessing.Pool over a list, for tests/compare/run: square, echo by subprocess, or sleep."""

import multiprocessing
import subprocess
import sys
import time


def square(n):
    return n * n


def echo(item):
    return subprocess.run(["printf", "%s\\n", item], stdout=subprocess.PIPE, check=True).stdout


def sleep(ms):
    time.sleep(ms / 1000)
    return ms


def main():
    what, processes = sys.argv[1], int(sys.argv[2])
    data = sys.stdin.buffer.read().split()
    with multiprocessing.Pool(processes) as pool:
        if what == "square":
            out = pool.map(square, list(map(int, data)))
            sys.stdout.write("\n".join(map(str, out)) + "\n")
        elif what == "echo":
            for line in pool.map(echo, [item.decode() for item in data]):
                sys.stdout.buffer.write(line)
        elif what == "sleep":
            out = pool.map(sleep, list(map(int, data)), chunksize=1)
            sys.stdout.write("\n".join(map(str, out)) + "\n")


if __name__ == "__main__":
    main()
