"""A stand-in for a GPU: copies and kernels happen later, in threads of their own, and what is free is poisoned.

A buffer is free as soon as what reads it is done, and until what fills it is done: whoever comes too early or too late
finds poison, and the test that compares features fails.
"""

import threading
import time
from queue import SimpleQueue

import torch

POISON = 221
_COPY_S, _KERNEL_S = 0.01, 0.002  # a copy ends long after the kernels that do not wait for it


class Mark:
    def __init__(self):
        self._done = threading.Event()
        self.fault = None

    def synchronize(self):
        self._done.wait()
        if self.fault:
            raise self.fault

    def done(self, fault=None):
        self.fault = fault
        self._done.set()


class Stream:
    def __init__(self, late_s):
        self._queue = SimpleQueue()
        self._late_s = late_s
        threading.Thread(target=self._work, daemon=True).start()

    def begin(self, work):
        mark = Mark()
        self._queue.put((work, mark))
        return mark

    def _work(self):
        while True:
            work, mark = self._queue.get()
            time.sleep(self._late_s)
            try:
                work()
                mark.done()
            except Exception as error:
                mark.done(error)


class LateDevice:
    depth = 4

    def __init__(self):
        self._copies, self._kernels = Stream(_COPY_S), Stream(_KERNEL_S)
        self.order = []  # what happened

    def host(self, *shape, dtype):
        return _poison(torch.empty(shape, dtype=dtype))

    def beside(self, host):
        return _poison(torch.empty_like(host))

    def copy(self, source, target):
        _poison(target)

        def work():
            target.copy_(source)
            _poison(source)
            self.order.append("copied")

        return self._copies.begin(work)

    def compute(self, network, source, target, after):
        _poison(target)

        def work():
            after.synchronize()
            found = network(source)
            _poison(source)
            time.sleep(_KERNEL_S)
            target.copy_(found)
            self.order.append("computed")

        return self._kernels.begin(work)


def _poison(buffer):
    return buffer.fill_(POISON if buffer.dtype == torch.uint8 else torch.nan)
