"""What was measured on IJB-B or IJB-C, as lines of text and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from evaluation.ijb.measure import IjbResult
from evaluation.origin import Origin
from evaluation.protocol.figures import by_far
from faceshards.errors import FaceshardsError
from faceshards.files import write_json
from faceshards.storage.location import Location


def facts(benchmark: str, result: IjbResult, published: float | None, origin: Origin) -> dict[str, Any]:
    """Returns what ijb.json has: of which benchmark and model it is, what was measured, and the published TAR in %."""
    tars = by_far(result.figures)
    counts = {name: value for name, value in dataclasses.asdict(result).items() if name != "figures"}
    return {
        "benchmark": benchmark,
        **origin.facts(),
        **counts,
        "tar": {far: figure.value for far, figure in tars.items()},
        "intervals": {far: figure.interval for far, figure in tars.items()},
        "auc": result.figures["auc"].value,
        "published_tar_1e-4": published,
    }


def table(result: IjbResult, published: float | None, origin: Origin) -> list[str]:
    """Returns what was measured, beside the published TAR in % at FAR 1e-4, and of which model, as lines of text."""
    lines = [f"{'FAR':>6}  {'TAR %':>6}  {'95 %':>12}" + ("  arcface_torch" if published else "")]
    for far, figure in by_far(result.figures).items():
        tar, interval, beside = "n/m", "", ""  # not measurable: too few impostor pairs
        if figure.value is not None and figure.interval is not None:
            tar = f"{100 * figure.value:.2f}"
            interval = f"{100 * figure.interval[0]:.2f}-{100 * figure.interval[1]:.2f}"
            if published and far == 1e-4:
                beside = f"  {published:.2f} {100 * figure.value - published:+.2f}"
        lines.append(f"{far:>6g}  {tar:>6}  {interval:>12}{beside}")
    auc = 100 * (result.figures["auc"].value or 0)
    lines.append(f"{result.pairs:,} pairs, {result.impostors:,} of them two persons; AUC {auc:.2f} %")
    return [*lines, *left_out(result), *origin.lines()]


def left_out(result: IjbResult) -> list[str]:
    """Returns what is left out as a line of text; nothing if nothing is."""
    images = [f"{result.dropped_images:,} images without an embedding"] if result.dropped_images else []
    templates = [
        f"{part.templates:,} templates {part.cause} ({part.pairs:,} pairs)" for part in result.dropped_templates
    ]
    if not images and not templates:
        return []
    return [f"left out: {'; '.join(images + templates)}; in all {result.dropped_pairs:,} pairs"]


def write(out: Location, found: dict[str, Any], left_out: list[str]) -> None:
    """Writes ijb.json, whole or not at all.

    Args:
        out: its folder, made if need be, or a prefix in a bucket.
        found: see facts().
        left_out: why images have no embedding, a line each.

    Raises:
        FaceshardsError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json({**found, "left_out": left_out}, out / "ijb.json")
    except OSError as error:
        raise FaceshardsError(f"{out}: the result cannot be written: {error.strerror}") from None
