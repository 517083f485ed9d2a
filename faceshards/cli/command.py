"""What a command is: its users see one line for whatever they can put right, also for Ctrl-C and a missing package."""

from __future__ import annotations

import _thread
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.exceptions import Abort, Exit

from faceshards.cli.paths import settled
from faceshards.cli.terminal import echo
from faceshards.errors import ConfigError, FaceshardsError, disk_full, why

# The extra of setup.cfg that brings a package of another name.
EXTRAS = {
    **dict.fromkeys(("mindspore", "tensorboardX"), "train"),
    **dict.fromkeys(("sklearn", "matplotlib", "onnx", "onnxruntime"), "eval"),
    "mxnet": "mxnet",
    **dict.fromkeys(("duckdb", "jinja2", "markupsafe"), "manifest"),
}
# What no extra brings, by what installs it.
OTHERS = {"wandb": "wandb", "mlflow": "mlflow-skinny"}


class WrongUsage(click.ClickException):
    """What a ConfigError ends as: one line, since the command's usage says nothing of names, keys and values."""

    exit_code = 2


class Interrupted(click.ClickException):
    """Ctrl-C; the exit code is that of a process which SIGINT ended, as a shell says it."""

    exit_code = 130

    def __init__(self, go_on: str = "") -> None:
        super().__init__("interrupted" + (go_on and f"; {go_on}"))


GoOn = Callable[[Mapping[str, Any]], str]


def goes_on(params: Mapping[str, Any]) -> str:
    """Returns how to go on with an interrupted command that keeps its work until it is whole."""
    without = " without --restart" if params.get("restart") else ""
    return f"the same command{without} goes on where it stopped"


class Command(click.Command):
    """A command whose users see one line for whatever they can put right.

    A ConfigError is wrong usage, exit code 2: a name, key or value that was typed, or stands in a file of settings, is
    none that there is, or none that can be. Whatever else is wrong (a file is missing or damaged, a disk is full) is a
    failure, exit code 1.

    Args:
        go_on: gives of the values of its options what to say when it was interrupted: how to go on; "" for nothing.
    """

    def __init__(self, *args: Any, go_on: GoOn | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.go_on = go_on

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; raises ClickException for what a user can put right."""
        try:
            os.getcwd()
        except FileNotFoundError:
            raise click.ClickException("the folder that this was started in is gone: cd to another") from None
        try:
            return self.run(ctx)
        except ConfigError as error:
            raise WrongUsage(" ".join(str(error).split())) from None
        except FaceshardsError as error:
            raise click.ClickException(" ".join(str(error).split())) from None
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            wanted = f"'faceshards[{EXTRAS[package]}]'" if package in EXTRAS else OTHERS.get(package)
            if wanted is None:
                raise
            raise click.ClickException(
                f"{ctx.info_name} needs {error.name}, which is not installed: pip install {wanted}"
            ) from None
        except OSError as error:
            if not disk_full(error):
                raise
            raise click.ClickException(f"{error.filename or 'writing'}: {why(error)}") from None
        except KeyboardInterrupt:
            raise Interrupted(self.go_on(ctx.params) if self.go_on else "") from None

    def run(self, ctx: click.Context) -> Any:
        """Runs the command; what a family of commands has around theirs goes here."""
        ctx.params = {name: settled(value, ctx) for name, value in ctx.params.items()}
        return super().invoke(ctx)


@contextmanager
def interruptible() -> Iterator[None]:
    """Has Ctrl-C raise KeyboardInterrupt while the work inside runs models.

    MindSpore puts a handler of its own in place with every graph, which ends the process by SIGTERM (measured: 2.10).
    So SIGINT is blocked, in the threads and processes that are made inside too, and one thread waits for it. It has to
    come before NumPy is imported, whose threads would get the signal else.
    """
    before, done = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}), threading.Event()

    def wait() -> None:
        while not done.is_set():
            if signal.sigtimedwait({signal.SIGINT}, 0.2) is not None:
                _thread.interrupt_main()

    waiting = threading.Thread(target=wait, name="ctrl-c", daemon=True)
    waiting.start()
    try:
        yield
    finally:
        done.set()
        waiting.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ModelCommand(Command):
    """A command that runs a model: what MindSpore leaves when a graph fails goes into a temporary folder, not into the
    one that the user stands in; without a failure nothing of it stays."""

    def run(self, ctx: click.Context) -> Any:
        """Runs the command; Ctrl-C ends it as any."""
        with interruptible():
            return self._reported(ctx)

    def _reported(self, ctx: click.Context) -> Any:
        """Runs the command; of what MindSpore raises, one line says what and where the rest is."""
        from training.device.diagnostics import DeviceError, diagnostics_in, quieten, reported_in

        quieten()

        folder = Path(tempfile.mkdtemp(prefix="faceshards-mindspore-"))
        try:
            with diagnostics_in(folder), reported_in(folder, click.ClickException, Exit, Abort):
                found = super().run(ctx)
        except BaseException as error:
            if not any(folder.iterdir()):
                folder.rmdir()
            elif not isinstance(error, DeviceError):  # which says so
                echo(f"what MindSpore wrote about it is in {folder}", err=True)
            raise
        shutil.rmtree(folder)
        return found
