"""The processes of a run and what they may say to each other: the only module that knows a device's collectives.

On CPU, MindSpore 2.10 sums and gathers floats, gathers integers, and fails at AllReduce MAX and MIN, at ReduceScatter
and at AllToAll; so the maximum is a gather and a maximum here. Its all_gather_object is listed for Ascend and its
barrier for Ascend and CPU only; so both are gathers here, which every device has.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import communication, ops

from faceshards.errors import ConfigError, FaceshardsError
from training.config import CHOICES
from training.device.diagnostics import DeviceError, first_line
from training.device.numpy2 import settle_numpy

AUTO, *DEVICES = CHOICES["device"]


@ms.jit_class
class Group:
    """The processes that train together, one per slice of the classes; its tensor methods work inside ms.jit.

    Args:
        rank: this process, 0 to world - 1.
        world: number of processes. With 1, nothing is communicated and every collective returns its argument.
        device: "CPU", "GPU" or "Ascend".
    """

    def __init__(self, rank: int = 0, world: int = 1, device: str = "CPU") -> None:
        self.rank = rank
        self.world = world
        self.device = device
        if world > 1:
            self._gather = ops.AllGather()
            self._sum = ops.AllReduce()
            self._max = ops.AllReduce(ops.ReduceOp.MAX)

    def gather(self, x: ms.Tensor) -> ms.Tensor:
        """Returns the ranks' x (B, ...) one below the other, (world * B, ...); not differentiable on CPU."""
        if self.world == 1:
            return x
        return self._gather(x)

    def sum(self, x: ms.Tensor) -> ms.Tensor:
        """Returns the elementwise sum of the ranks' float x, in x's shape."""
        if self.world == 1:
            return x
        return self._sum(x)

    def max(self, x: ms.Tensor) -> ms.Tensor:
        """Returns the elementwise maximum of the ranks' float x, in x's shape."""
        if self.world == 1:
            return x
        if self.device == "CPU":
            return self._gather(x.expand_dims(0)).max(axis=0)
        return self._max(x)

    def gather_object(self, obj: Any) -> list[Any]:
        """Returns every rank's picklable obj in the order of the ranks; on the host, outside graphs."""
        if self.world == 1:
            return [obj]
        data = pickle.dumps(obj)
        sizes = self._gather(ms.Tensor([len(data)], ms.int32)).asnumpy()
        mine = np.frombuffer(data.ljust(-(-int(sizes.max()) // 4) * 4, b"\0"), np.int32)
        everyone = self._gather(ms.Tensor(mine)).asnumpy().reshape(self.world, -1)
        return [pickle.loads(row.tobytes()) for row in everyone]  # it ends before the zeros

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        if self.world > 1:
            self._gather(ms.Tensor([0], ms.int32)).asnumpy()


def init(device: str = "CPU", environ: Mapping[str, str] = os.environ) -> Group:
    """Returns the group of this process on the device; joins the job when msrun's environment is present.

    Args:
        device: "CPU", "GPU" or "Ascend".
        environ: where MS_WORKER_NUM is looked up; msrun sets it.

    Raises:
        ConfigError: a device of another name.
        FaceshardsError: the device is not there, or the job cannot be joined.
    """
    if device not in DEVICES:
        raise ConfigError(f"device {device!r} is not one of {', '.join(DEVICES)}")
    _set_device(device)
    settle_numpy()
    try:
        workers = int(environ.get("MS_WORKER_NUM", "1"))
    except ValueError:
        raise FaceshardsError(f"MS_WORKER_NUM={environ['MS_WORKER_NUM']!r} is not a number of processes") from None
    if workers <= 1:
        return Group(0, 1, device)
    try:
        with _quiet():
            communication.init()
    except RuntimeError as error:
        raise DeviceError(f"cannot join the job of {workers} processes: {first_line(error)}", echo=True) from error
    return Group(communication.get_rank(), communication.get_group_size(), device)


def choose_device(device: str) -> str:
    """Returns a device's name, for "auto" the first of DEVICES that is there; nothing is started on it."""
    return next(iter(_devices_there()), "CPU") if device == AUTO else device


def check_device(device: str, ranks: int = 1) -> None:
    """Refuses a device that is not on this host, or that has not one for each rank; nothing is started on it.

    Args:
        device: "CPU", "GPU" or "Ascend".
        ranks: on this host.

    Raises:
        FaceshardsError: names the devices there are.
    """
    there = _devices_there()
    if device in there:
        with _quiet():
            count = ms.hal.device_count(device) if device != "CPU" else ranks
        if count < ranks:
            raise FaceshardsError(f"--devices {ranks}: this host has {count} of device {device}")
        return
    others = "".join(f"; choose with --set device={name}" for name in there[:1])
    raise FaceshardsError(f"device {device} is not available here (available: {', '.join(there) or 'none'}){others}")


def _devices_there() -> list[str]:
    """Returns the names of this host's devices, best first."""
    with _quiet():
        return [name for name in DEVICES if ms.hal.is_available(name)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps MindSpore's pages of advice off the terminal; what matters is in its exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _set_device(device: str) -> None:
    """Chooses the device."""
    check_device(device)
    try:
        with _quiet():
            if ms.get_context("device_target") != device:
                ms.set_device(device)  # which may not come after the first computation, even with the same device
    except RuntimeError as error:
        raise FaceshardsError(f"device {device} cannot be used: {first_line(error)}") from error
