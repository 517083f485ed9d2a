"""Models of MXNet, which the owners of .rec files have: PREFIX-symbol.json with PREFIX-0000.params, by MXNet itself."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.embedder import SIZE, Forward
from evaluation.models.model import ModelError, graph_forward, to_pixels
from faceshards.checksums import file_digest
from faceshards.errors import first_few
from faceshards.formats.json_files import parse_json

log = logging.getLogger(__name__)

SYMBOL = "-symbol.json"
_PARAMS = re.compile(r"-(\d{4,})\.params$")
_EMBEDDING = "fc1_output"  # by its name in InsightFace's networks, whatever head was trained on it
_INPUT = "data"
# What a graph that normalises its pixels itself begins with: (x - 127.5) * 0.0078125.
_NORMALISES = (["_minus_scalar", "_mul_scalar"], ["_MinusScalar", "_MulScalar"])
_PASSES_ON = ("_copy", "identity", "Cast", "cast")


def find_mxnet(path: Path) -> tuple[Path, Path] | None:
    """Returns the symbol's and the parameters' files of what --model names; None if it names no model of MXNet.

    Args:
        path: PREFIX, of which the last epoch is taken; PREFIX,EPOCH, as InsightFace writes it; or one of the files.

    Raises:
        ModelError: the other file is not there.
    """
    text = str(path)
    prefix, epoch = text, None
    if text.endswith(SYMBOL):
        prefix = text.removesuffix(SYMBOL)
    elif found := _PARAMS.search(text):
        prefix, epoch = text[: found.start()], found[1]
    elif (found := re.search(r",(\d+)$", text)) and not path.exists():
        prefix, epoch = text[: found.start()], found[1].zfill(4)
    elif path.exists() or not Path(prefix + SYMBOL).exists():
        return None
    symbol = Path(prefix + SYMBOL)
    if not symbol.exists():
        raise ModelError(f"{symbol}: no such file; a model of MXNet is PREFIX{SYMBOL} with PREFIX-0000.params")
    if epoch is not None:
        params = Path(f"{prefix}-{epoch}.params")
        if not params.exists():
            raise ModelError(f"{params}: no such file; {_known(symbol, prefix)}")
        return symbol, params
    epochs = _epochs(symbol, prefix)
    if not epochs:
        raise ModelError(f"{prefix}-0000.params: no such file; it belongs to {symbol.name}")
    if len(epochs) > 1:
        log.warning("%s: has %s; the last is taken", prefix, first_few(other.name for other in epochs))
    return symbol, epochs[-1]


def _epochs(symbol: Path, prefix: str) -> list[Path]:
    """Returns the files of parameters beside a symbol, by epoch."""
    names = (entry.name for entry in symbol.parent.iterdir())
    stem = Path(prefix).name
    found = [(int(match[1]), name) for name in names if (match := _PARAMS.search(name)) and name == stem + match[0]]
    return [symbol.with_name(name) for _, name in sorted(found)]


def _known(symbol: Path, prefix: str) -> str:
    found = [path.name for path in _epochs(symbol, prefix)]
    return f"there is {first_few(found)}" if found else "there are no parameters beside the symbol"


def mxnet_digest(symbol: Path, params: Path) -> str:
    """Returns one SHA-256 (hex) for both files.

    Raises:
        ModelError: one cannot be read.
    """
    try:
        return hashlib.sha256("".join(file_digest(path)[1] for path in (symbol, params)).encode()).hexdigest()
    except OSError as error:
        raise ModelError(f"{error.filename}: {error.strerror}") from None


def mxnet_forward(symbol: Path, params: Path, input_range: str) -> tuple[Forward, str]:
    """Returns a model as a function, and the range of the pixels that it gets, "0-255" or "-1-1".

    The public LResNet-E-IR models normalise pixels from 0 to 255 themselves. A network that still has the head it was
    trained with, and inputs for labels, is taken up to `fc1`, its embeddings.

    Args:
        symbol: the graph.
        params: its values.
        input_range: "auto" looks at the graph's first operations.

    Raises:
        ModelError: one of the files is damaged, they do not belong together, the graph takes other inputs than images,
            or it gives not one [B, D].
        FaceshardsError: MXNet is not there.
    """
    from evaluation.models import mxnet_import

    mx = mxnet_import.load()
    graph, own = _read_symbol(mx, symbol)
    values = _read_params(mx, params)
    outputs = graph.list_outputs()
    lacking = _lacking(graph, values)
    known = graph.get_internals()
    if (lacking or len(outputs) > 1) and outputs != [_EMBEDDING] and _EMBEDDING in known.list_outputs():
        graph = known[_EMBEDDING]
        log.warning("%s: of its outputs takes %s, the embeddings, not %s", symbol, _EMBEDDING, first_few(outputs))
        lacking = _lacking(graph, values)
    if _INPUT not in graph.list_arguments():
        raise ModelError(f"{symbol}: takes {first_few(graph.list_arguments()[:1])}, not '{_INPUT}', the images")
    if lacking:
        raise ModelError(
            f"{params}: lacks {first_few(lacking)}, which {symbol.name} takes: of another model, or a head"
        )
    pixels = input_range == "0-255" or (input_range == "auto" and own)
    names = {name for name in (*graph.list_arguments(), *graph.list_auxiliary_states()) if name != _INPUT}
    block = mx.gluon.SymbolBlock(graph, mx.sym.var(_INPUT, dtype="float32"))
    _set_values(mx, graph, block, {name: values[name] for name in names}, symbol, params)

    def run(images: np.ndarray) -> list[np.ndarray]:
        given = to_pixels(images) if pixels else images
        try:
            found = block(mx.nd.array(given, dtype="float32"))
            return [out.asnumpy() for out in (found if isinstance(found, list | tuple) else [found])]
        except (mx.MXNetError, ValueError) as error:
            raise ModelError(f"{symbol}: MXNet cannot run it: {_cause(error)}") from None

    return graph_forward(symbol, run, graph.list_outputs(), 0), "0-255" if pixels else "-1-1"


def _read_symbol(mx: Any, path: Path) -> tuple[Any, bool]:
    """Returns a graph, and whether it begins with what normalises pixels from 0 to 255."""
    try:
        data = path.read_bytes()
        nodes = parse_json(data)["nodes"]
        first = [place for place, node in enumerate(nodes) if node["name"] == _INPUT and node["op"] == "null"]
        return mx.sym.load_json(data.decode()), _first_operations(nodes, first[0] if first else -1) in _NORMALISES
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, mx.MXNetError) as error:
        raise ModelError(f"{path}: no symbol of MXNet, or damaged: {_cause(error)}") from None


def _first_operations(nodes: list[dict[str, Any]], place: int) -> list[str]:
    """Returns the kinds of the first two nodes that change what node `place` gives."""
    kinds: list[str] = []
    for number, node in enumerate(nodes):
        if len(kinds) < 2 and any(entry[0] == place for entry in node["inputs"]):
            kinds += [] if node["op"] in _PASSES_ON else [node["op"]]
            place = number
    return kinds


def _read_params(mx: Any, path: Path) -> dict[str, Any]:
    """Returns arrays by their names, without what says whether they are learned (``arg:``, ``aux:``)."""
    try:
        found = mx.nd.load(str(path))
    except (mx.MXNetError, ValueError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: no parameters of MXNet, or damaged: {_cause(error)}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: {len(found)} arrays without names")
    return {name.partition(":")[2] or name: value for name, value in found.items()}


def _lacking(graph: Any, values: dict[str, Any]) -> list[str]:
    """Returns the names of inputs and states of a graph for which there are no values."""
    wanted = (*graph.list_arguments(), *graph.list_auxiliary_states())
    return [name for name in wanted if name not in values and name != _INPUT]


def _set_values(mx: Any, graph: Any, block: Any, values: dict[str, Any], symbol: Path, params: Path) -> None:
    """Gives a block its values, after their shapes were compared with the graph's for one image."""
    try:
        shapes = _shapes(graph, (1, 3, *SIZE))
    except (mx.MXNetError, ValueError) as error:
        raise ModelError(f"{symbol}: does not take [B, 3, {SIZE[0]}, {SIZE[1]}]: {_cause(error)}") from None
    for name, parameter in block.collect_params().items():
        value, shape = values[name], shapes[name]
        if tuple(value.shape) != tuple(shape):
            raise ModelError(f"{params}: {name} is {list(value.shape)}, {symbol.name} wants {list(shape)}")
        if not np.isfinite(value.asnumpy()).all():
            raise ModelError(f"{params}: {name} has values that are not finite")
        parameter.shape = tuple(value.shape)
        parameter.initialize(ctx=mx.cpu())
        parameter.set_data(value.astype("float32"))


def _shapes(graph: Any, images: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a graph's inputs and states by name, for images of a shape."""
    arguments, _, states = graph.infer_shape(**{_INPUT: images})
    names = (*graph.list_arguments(), *graph.list_auxiliary_states())
    return dict(zip(names, (*arguments, *states), strict=True))


def _cause(error: Exception) -> str:
    """Returns an error of MXNet in one line, without its stack."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(("Stack trace", "  ["))]
    text = " ".join(lines[-1].split()) if lines else type(error).__name__
    return re.sub(r"^(MXNetError: |Error in operator )?(\[\S+\] )?\S*\.(cc|h):\d+: ", "", text)[:200]
