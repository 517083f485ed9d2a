"""What filters cost beside signing, how their values lie, and what a blur or a shrunk face measures.

Takes the faces of a RecordIO set (default: $FACESHARDS_DATA/orl/train.rec) and synthetic ones, and prints CPU time an
image of signing alone and with each filter; quantiles of every value measured; and of faces that were blurred, or
shrunk and enlarged again, the variance of the Laplacian and the share that `blur` drops by its default, and at 100.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.config import BuildConfig
from pipelines.filters.blur import Blur, laplacian_variance
from pipelines.filters.quantiles import quantile_lines, quantiles
from pipelines.filters.registry import FILTERS
from pipelines.filters.screen import MEASURED
from pipelines.sources.base import Partition, Scanned
from pipelines.sources.registry import scan
from pipelines.stages.signatures import sign
from pipelines.synthetic.faces import encode_face

Images = list[np.ndarray]


def seconds(images: Images, config: BuildConfig) -> float:
    """Returns the CPU seconds an image of signing with some filters."""
    rows = Scanned.of_images([*images])
    start = time.process_time()
    sign(rows, config)
    return (time.process_time() - start) / len(images)


def print_cost(images: Images, rounds: int) -> None:
    """Prints microseconds an image, alone and with each filter; in turn, as a machine has its slow moments."""
    chosen = {"without filters": [], **{f"with {name}": [name] for name in FILTERS}, "with all": [*FILTERS]}
    configs = {
        title: BuildConfig(image_size=(0, 0), filters={name: {} for name in names}) for title, names in chosen.items()
    }
    found = np.array([[seconds(images, config) for config in configs.values()] for _ in range(rounds)]).min(axis=0)
    print(f"{'signing, CPU time an image':<28}{'us':>7}{'more':>8}")
    for title, best in zip(configs, found.tolist(), strict=True):
        print(f"{title:<28}{best * 1e6:>7.0f}{best / found[0] - 1:>+8.0%}")


def print_quantiles(images: Images) -> None:
    """Prints how the values of all filters lie."""
    columns = sign(Scanned.of_images([*images]), BuildConfig(image_size=(0, 0), filters={name: {} for name in FILTERS}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.parquet"
        pq.write_table(pa.table({name: values for name, values in columns.items() if name.startswith(MEASURED)}), path)
        print("\n".join(quantile_lines(quantiles([path]))))


def blurred(sigma: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what blurs a picture by a Gaussian of so many pixels."""
    return lambda picture: cv2.GaussianBlur(picture, (0, 0), sigma) if sigma else picture


def shrunk(side: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what shrinks a picture to so many pixels and enlarges it again."""
    return lambda picture: cv2.resize(
        cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA),
        picture.shape[1::-1],
        interpolation=cv2.INTER_CUBIC,
    )


def saved_at(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what saves a picture as JPEG and reads it back."""
    return lambda picture: cv2.imdecode(
        cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR
    )


CHANGES = {
    **{f"blurred, sigma {sigma:g}": blurred(sigma) for sigma in (0, 0.5, 1, 1.5, 2, 3, 4, 6, 8)},
    **{f"shrunk to {side}, enlarged": shrunk(side) for side in (64, 48, 32, 24, 16, 12)},
    "JPEG quality 10": saved_at(10),
}


def print_blur(images: Images) -> None:
    """Prints what the variance of the Laplacian is of changed faces."""
    limits = (Blur().min_variance, 100.0)
    below = "".join(f"{f'below {limit:g}':>11}" for limit in limits)
    print(f"{'variance of the Laplacian':<28}{'5 %':>8}{'50 %':>8}{'95 %':>8}{below}")
    for name, change in CHANGES.items():
        saved = (
            cv2.imencode(".jpg", change(cv2.imdecode(image, cv2.IMREAD_COLOR)), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            for image in images
        )
        found = np.array([laplacian_variance(cv2.imdecode(data, cv2.IMREAD_REDUCED_GRAYSCALE_2)) for data in saved])
        cells = "".join(f"{value:>8.0f}" for value in np.percentile(found, (5, 50, 95)))
        print(f"{name:<28}{cells}{''.join(f'{(found < limit).mean():>11.1%}' for limit in limits)}")


@click.command()
@click.option("--rec", type=click.Path(path_type=Path), help="A .rec of aligned faces.")
@click.option("--synthetic", default=400, show_default=True, help="Synthetic faces to draw.")
@click.option("--rounds", default=9, show_default=True, help="Of which the fastest is printed.")
def main(rec: Path | None, synthetic: int, rounds: int) -> None:
    """Print all three, of each set of faces."""
    rec = rec or Path(os.environ.get("FACESHARDS_DATA", "../shared/data")) / "orl" / "train.rec"
    drawn = [np.frombuffer(encode_face(0, number // 5, number % 5), np.uint8) for number in range(synthetic)]
    sets = {f"{synthetic} synthetic faces": drawn}
    if rec.is_file():
        found = scan(Partition(0, 0, "recordio", str(rec), 0, rec.stat().st_size, None, True)).images
        images = [image for image in found if image is not None]
        sets = {f"{len(images)} faces of {rec}": images, **sets}
    else:
        click.echo(f"skipped: no faces at {rec}; name a .rec with --rec or set FACESHARDS_DATA")
    cv2.setNumThreads(1)
    for name, faces in sets.items():
        print(f"\n{name}")
        print_cost(faces, rounds)
        print_quantiles(faces)
        print_blur(faces)


if __name__ == "__main__":
    main()
