"""Options, arguments and types of options that several commands have."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from faceshards.cli.paths import FETCHED, LOCATION, MODEL, PATH
from faceshards.cli.terminal import echo
from faceshards.errors import one_line
from faceshards.storage.location import Location

if TYPE_CHECKING:
    from evaluation.models.load import Model


def _parse(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    import yaml  # not for every command

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--set {text}: not KEY=VALUE")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError):
            raise click.UsageError(f"--set {text[:200]}: the value is not YAML") from None
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


class _Bytes(click.ParamType):
    """A number of bytes: 200G, 1.5T, 512MiB, or as it is."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Returns the bytes."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGTP]?)(i?)B?", str(value).strip(), re.IGNORECASE)
        if found is None or (found[3] and not found[2]):
            self.fail(f"{value}: no number of bytes, such as 200G (10^9) or 512MiB (2^20)", param, ctx)
        return int(Decimal(found[1]) * (1024 if found[3] else 1000) ** " KMGTP".index(found[2].upper() or " "))


SHARE = _Share()
BYTES = _Bytes()
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
dataset_argument = click.argument("path", type=LOCATION)
work_option = click.option(
    "--work", type=PATH, help="With OUT in a bucket: folder on a disk to make it in, as large as the result."
)
_TLS = {"ca": "the authority's certificate", "cert": "own certificate", "key": "its key, if not in the same file"}


def check_work(out: Location, work: Location | None, where: str = "a folder on a disk") -> None:
    """Refuses a place in a bucket without a work folder, and a work folder without one.

    Args:
        out: the place.
        work: the work folder, if it was given.
        where: it may be.
    """
    if isinstance(out, Path) != (work is None):
        raise click.UsageError(
            f"{out}: is in a bucket, and needs --work, {where}, to be made in"
            if work is None
            else "--work belongs to a place in a bucket: what is for a folder is made beside it"
        )


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what says where a command's work is done: --workers, --scheduler, and --tls-ca and the like.

    The command gets `workers`, `scheduler`, and `tls`, keywords of pipelines.cluster.Tls, or None.
    """

    @click.option("--workers", type=click.IntRange(min=0), default=0, help="Local worker processes; 0: one per core.")
    @click.option(
        "--scheduler",
        metavar="tls://HOST:PORT",
        help="Use this Dask cluster; it shares what is no address. tcp://HOST:PORT: unencrypted, for trusted networks.",
    )
    @functools.wraps(command)
    def with_tls(*args: Any, scheduler: str | None, **options: Any) -> Any:
        if "@" in (scheduler or ""):
            raise click.UsageError("--scheduler is tls://HOST:PORT or tcp://HOST:PORT, without a user or a password")
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
model_option = click.option("--model", type=MODEL, help=_MODEL)
required_model_option = click.option("--model", type=MODEL, required=True, help=_MODEL)
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
embeddings_option = click.option("--embeddings", type=FETCHED, help="In place of --model: an .npy of (images, D).")


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
