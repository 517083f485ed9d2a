"""What the commands share: how errors and Ctrl-C end, the extras they need, and the options that several have."""

from __future__ import annotations

import functools
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from faceshards.cli.paths import FETCHED, LOCATION, PATH
from faceshards.cli.terminal import echo
from faceshards.errors import FaceshardsError, disk_full, harmless, one_line, why
from faceshards.extensions import ExtensionError, load, registered

if TYPE_CHECKING:
    from evaluation.models.load import Model


# The extra of setup.cfg that brings a package of another name.
EXTRAS = {
    **dict.fromkeys(("mindspore", "tensorboardX"), "train"),
    **dict.fromkeys(("sklearn", "matplotlib", "onnx", "onnxruntime"), "eval"),
    "mxnet": "mxnet",
    **dict.fromkeys(("duckdb", "jinja2", "markupsafe"), "manifest"),
}
# What no extra brings, by what installs it.
OTHERS = {"wandb": "wandb", "mlflow": "mlflow-skinny"}


class Command(click.Command):
    """A command whose users see one line for whatever they can put right.

    Args:
        go_on: what to say when it was interrupted: how to go on.
    """

    def __init__(self, *args: Any, go_on: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.go_on = go_on

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; raises ClickException for what a user can put right."""
        try:
            os.getcwd()
        except FileNotFoundError:
            raise click.ClickException("the folder that this was started in is gone: cd to another") from None
        try:
            return super().invoke(ctx)
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
            raise click.ClickException(f"interrupted{self.go_on}") from None


class ModelCommand(Command):
    """A command that runs a model: what MindSpore leaves when a graph fails goes into a temporary folder, not into the
    one that the user stands in; without a failure nothing of it stays."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command, and says where MindSpore left something."""
        from training.device.diagnostics import diagnostics_in

        folder = Path(tempfile.mkdtemp(prefix="faceshards-mindspore-"))
        try:
            with diagnostics_in(folder):
                found = super().invoke(ctx)
        except BaseException:
            if any(folder.iterdir()):
                echo(f"what MindSpore wrote about it is in {folder}", err=True)
            else:
                folder.rmdir()
            raise
        shutil.rmtree(folder)
        return found


class Commands(click.Group):
    """A group of such commands."""

    command_class = Command

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; what is said of its failure has no control characters."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = harmless(error.message)  # type: ignore[misc]
            raise


class LazyCommands(Commands):
    """A group whose commands are imported when they are called for.

    Args:
        places: "module:name" of each command, by the name that is typed.
        family: name of the family to which other packages add commands (faceshards.extensions); "" for none.
    """

    def __init__(self, *args: Any, places: Mapping[str, str], family: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.places, self.family = places, family

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of all commands, sorted."""
        return sorted({*self.places, *self._others()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns a command, or None."""
        others = self._others()
        try:
            if cmd_name in others:
                return load(others[cmd_name], click.Command)
            if cmd_name in self.places:
                module, _, name = self.places[cmd_name].partition(":")
                return getattr(importlib.import_module(module), name)
            return None
        except ExtensionError as error:  # of this command, or of a family that one of the house has imported
            return _broken(cmd_name, error)

    def _others(self) -> dict[str, EntryPoint]:
        """Returns the entry points of other packages by name."""
        try:
            return {entry.name: entry for entry in registered(self.family, self.places)} if self.family else {}
        except ExtensionError as error:
            raise click.ClickException(str(error)) from None


def _broken(name: str, error: ExtensionError) -> click.Command:
    """Returns a command in place of one that cannot be imported: it says why, and the others work."""

    @click.command(
        name, cls=Command, help=f"Cannot be loaded: {error}", context_settings={"ignore_unknown_options": True}
    )
    @click.argument("arguments", nargs=-1)
    def broken(arguments: tuple[str, ...]) -> None:
        raise error

    return broken


def _parse(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--set {text}: not KEY=VALUE")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise click.UsageError(f"--set {text}: the value is not YAML") from None
    return found


class _Share(click.ParamType):
    """A share above 0 to 1: 5% or 0.05."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns the share."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            self.fail(f"{text}: no share above 0 to 100 %, such as 5% or 0.05", param, ctx)
        return share


SHARE = _Share()
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
dataset_argument = click.argument("path", type=LOCATION)
_TLS = {"ca": "the authority's certificate", "cert": "own certificate", "key": "its key, if not in the same file"}


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what says where a command's work is done: --workers, --scheduler, and --tls-ca and the like.

    The command gets `workers`, `scheduler`, and `tls`, keywords of pipelines.cluster.Tls, or None.
    """

    @click.option("--workers", type=click.IntRange(min=0), default=0, help="Local worker processes; 0: one per core.")
    @click.option(
        "--scheduler",
        metavar="tls://HOST:PORT",
        help="Use this Dask cluster, which shares the file system. tcp://HOST:PORT: unencrypted, for trusted networks.",
    )
    @functools.wraps(command)
    def with_tls(*args: Any, scheduler: str | None, **options: Any) -> Any:
        given = {name: path for name in _TLS if (path := options.pop(f"tls_{name}")) is not None}
        if given and not (scheduler or "").startswith("tls://"):
            raise click.UsageError(f"--tls-{next(iter(given))} belongs to --scheduler tls://HOST:PORT")
        if given and not {"ca", "cert"} <= given.keys():
            raise click.UsageError(
                "--scheduler tls:// needs --tls-ca and --tls-cert, and --tls-key where CERT has none"
            )
        return command(*args, scheduler=scheduler, tls=given or None, **options)

    found: Callable[..., Any] = with_tls
    for name, what in reversed(_TLS.items()):
        found = click.option(f"--tls-{name}", type=PATH, metavar="FILE", help=f"For tls://: {what} (PEM).")(found)
    return found


partition_bytes_option = click.option(
    "--partition-bytes", type=click.IntRange(min=0), default=0, help="Aimed size of a task's input."
)
dashboard_option = click.option("--dashboard", is_flag=True, help="Serve Dask's dashboard and print its address.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress bars.")
settings_option = click.option(  # the command gets `settings`, a dict with each value read as YAML
    "--set", "settings", multiple=True, metavar="KEY=VALUE", callback=_parse, help="One setting; may be repeated."
)
data_root_option = click.option(
    "--data-root",
    type=PATH,
    default=Path("data/raw"),
    envvar="DATA_ROOT",
    show_default=True,
    help="Where the known sets lie, each in DATA_ROOT/NAME.",
)
_MODEL = "A checkpoint, a run's folder, weights, .onnx, .mindir, or PREFIX of MXNet's PREFIX-symbol.json."
model_option = click.option("--model", type=FETCHED, help=_MODEL)
required_model_option = click.option("--model", type=FETCHED, required=True, help=_MODEL)
backbone_option = click.option("--backbone", default="", help="Of a file of weights: r50, mbf, vit_b, ...")
channels_option = click.option(
    "--channels",
    type=click.Choice(["rgb", "bgr"]),
    default="rgb",
    show_default=True,
    help="The order of colours that the model takes.",
)
input_range_option = click.option(
    "--input-range",
    type=click.Choice(["auto", "0-255", "-1-1"]),
    default="auto",
    show_default=True,
    help="The range of pixels that the model takes; auto: 0-255 for a graph that normalises them itself.",
)
trained_on_option = click.option(
    "--trained-on", default="", help="Dataset of the model, for published figures; a checkpoint knows it."
)
far_option = click.option(
    "--far",
    "fars",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    multiple=True,
    help="A false accept rate at which the true accept rate is wanted; repeatable.",
)
embeddings_option = click.option("--embeddings", type=PATH, help="In place of --model: an .npy of (images, D).")


def one_of_model_and_embeddings(model: Path | None, embeddings: Path | None, channels: str, input_range: str) -> None:
    """Refuses both, and neither; and what a model gets without a model."""
    if (model is None) == (embeddings is None):
        raise click.UsageError("one of --model and --embeddings")
    if model is None and channels != "rgb":
        raise click.UsageError("--channels belongs to --model: embeddings were made already")
    if model is None and input_range != "auto":
        raise click.UsageError("--input-range belongs to --model: embeddings were made already")


def loaded(model: Path, backbone: str, trained_on: str, channels: str, input_range: str) -> tuple[Model, str]:
    """Returns a model, and the dataset it was trained on: as --trained-on says, or as the model knows."""
    from evaluation.models.load import load_model  # MindSpore takes seconds

    found = load_model(model, backbone, channels, input_range)
    return found, trained_on or str(found.card.get("dataset", ""))


def colours(model: Model) -> list[str]:
    """Returns the line that says which colours and pixels a model got, where they are not the usual ones."""
    found = [f"channels {model.channels}: the model got the colours in this order"] if model.channels != "rgb" else []
    return found + (["pixels 0-255: the model got them in this range"] if model.input_range == "0-255" else [])


def show(found: object, lines: Iterable[str], as_json: bool) -> None:
    """Prints what a command found: as JSON, or as lines."""
    for line in [json.dumps(found)] if as_json else map(one_line, lines):
        echo(line)
