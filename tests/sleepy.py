"""A side of the benchmark that only sleeps, or fails. Another process imports it, so it imports little."""

import time

from capsnet.benchmark.sides import Steps


def sleepy_side(images, labels, device):
    return Steps(train=lambda: time.sleep(0.01), infer=_fail)


def _fail():
    raise RuntimeError("out of memory\nand a long story")
