"""Where the ranks of a job are."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from faceshards.errors import FaceshardsError
from faceshards.formats.json_files import read_json

MSRUN = Path(sys.executable).with_name("msrun")


class LaunchError(FaceshardsError):
    """The ranks could not be started, or one of them ended early."""


@dataclass(frozen=True)
class Hosts:
    """Where the ranks are: so many devices on each of these hosts, of which this is one.

    Args:
        devices: ranks on each host.
        names: all hosts of the job, the first of which runs the scheduler; empty for this host alone.
        rank: this host's place among them.
        port: of the scheduler; 0 takes a free one.
        rank_table: Ascend's rank table file.
    """

    devices: int = 1
    names: tuple[str, ...] = ()
    rank: int = 0
    port: int = 0
    rank_table: Path | None = None

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.devices * max(1, len(self.names))

    @property
    def name(self) -> str:
        """Of this host; "" if it is alone."""
        return self.names[self.rank] if self.names else ""

    @property
    def ranks(self) -> range:
        """Those of this host."""
        return range(self.rank * self.devices, (self.rank + 1) * self.devices)

    def check(self) -> None:
        """Refuses a job that could not be started from here.

        Raises:
            LaunchError: names the option.
        """
        if len(self.names) > 1 and not self.port:
            raise LaunchError("several hosts need one --port that is free on the first of them")
        if twice := next((name for name in self.names if self.names.count(name) > 1), None):
            raise LaunchError(f"--hosts: {twice} is there twice; --devices says how many ranks a host has")
        if self.rank_table is not None:
            try:
                read_json(self.rank_table)
            except OSError as error:
                raise LaunchError(f"--rank-table: {self.rank_table}: {error.strerror}") from None
            except ValueError as error:
                raise LaunchError(f"--rank-table: {self.rank_table}: not JSON: {error}") from None
        if self.world > 1 and not MSRUN.is_file():
            raise LaunchError(f"{MSRUN}: No such file or directory; it comes with mindspore")
        if self.world > 1 and self.port and self.rank == 0:
            try:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("", self.port))
            except OSError as error:
                raise LaunchError(f"--port {self.port}: {error.strerror}; choose another, on all hosts") from None
