"""A long cable between two TAP devices, each in a network namespace of its own.

Every packet takes a time of its own, so that packets overtake each other, and some never arrive; where
the cable is slow they wait for each other, and what finds too many before it is lost, as at a router.
What `tc netem` does, for kernels that are built without it.

    relay.py NAMESPACE DEVICE NAMESPACE DEVICE DELAY_MS JITTER_MS LOSS_PERCENT BYTES_PER_SECOND

A speed of 0 is none: no packet waits for another.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP_NO_PI = 0x0002 | 0x1000
FRAME_BYTES_MAX = 65536
CLONE_NEWNET = 0x40000000

# Longer than that no packet waits for those before it.
QUEUE_SECONDS = 0.1

libc = ctypes.CDLL(None, use_errno=True)


def attach(namespace, device):
    """The packets of a device: it belongs to the namespace in which it is opened."""
    with open("/run/netns/" + namespace) as entry:
        if libc.setns(entry.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns " + namespace)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP_NO_PI))
    return tap


class Line:
    """One way of the cable: packets leave one after the other."""

    def __init__(self, bytes_per_second):
        self.seconds_per_byte = 1 / bytes_per_second if bytes_per_second else 0
        self.free_at = 0

    def leaves_at(self, now, packet):
        """When the last byte of a packet is on the way, or None if there is no room for it."""
        begins_at = max(now, self.free_at)
        if begins_at - now > QUEUE_SECONDS:
            return None
        self.free_at = begins_at + len(packet) * self.seconds_per_byte
        return self.free_at


def main():
    near, far = attach(*sys.argv[1:3]), attach(*sys.argv[3:5])
    delay, jitter = int(sys.argv[5]) / 1000, int(sys.argv[6]) / 1000
    loss = int(sys.argv[7]) / 100
    lines = {tap: Line(int(sys.argv[8])) for tap in (near, far)}
    other = {near: far, far: near}
    under_way = []
    number = 0
    print("ready", flush=True)
    while True:
        wait = max(0, under_way[0][0] - time.monotonic()) if under_way else None
        readable, _, _ = select.select([near, far], [], [], wait)
        for tap in readable:
            try:
                packet = os.read(tap, FRAME_BYTES_MAX)
            except OSError:
                continue  # The device is down, or nothing was there after all.
            leaves_at = lines[tap].leaves_at(time.monotonic(), packet)
            if leaves_at is not None and random.random() >= loss:
                due = leaves_at + delay + random.random() * jitter
                number += 1
                heapq.heappush(under_way, (due, number, other[tap], packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, tap, packet = heapq.heappop(under_way)
            try:
                os.write(tap, packet)
            except OSError:
                pass  # As on any cable: what cannot be taken is lost.


main()
