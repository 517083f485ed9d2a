"""Each filter against the pixels, counted by other means; and what a set's settings make of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faceshards.dataset.schema import DROP_REASONS, REASONS
from faceshards.errors import BuildError, ConfigError
from faceshards.formats.encoded_image import image_header
from faceshards.settings import make_config
from pipelines.config import BuildConfig
from pipelines.filters import registry, screen
from pipelines.filters.base import Image
from pipelines.filters.blur import Blur, laplacian_variance
from pipelines.filters.exposure import Exposure, tones
from pipelines.filters.gray import Gray, mean_chroma
from pipelines.filters.quantiles import SHARES, quantile_lines, quantiles
from pipelines.filters.registry import reasons_of, settle
from pipelines.filters.screen import BrokenFilterError, Screen
from pipelines.filters.size import Size
from pipelines.sources.base import Partition, Scanned
from pipelines.sources.registry import scan
from pipelines.stages.signatures import sign

ALL = {"blur": {}, "exposure": {}, "gray": {}, "size": {}}
pictures = st.builds(
    lambda seed, height, width, high: np.random.default_rng(seed).integers(0, high, (height, width), np.uint8),
    st.integers(0, 1 << 32),
    *(st.integers(1, 40),) * 2,
    st.integers(1, 256),
)


def encode(picture, suffix=".png", *flags):
    return cv2.imencode(suffix, picture, list(flags))[1].ravel()


def image_of(picture, suffix=".png"):
    """Returns the image as signing makes it, of a full-size picture."""
    data = encode(picture, suffix)
    return Image(data, picture.shape[:2], cv2.imdecode(data, cv2.IMREAD_REDUCED_GRAYSCALE_2))


def gray_image(gray):
    """Returns an image whose half-size gray is given."""
    return Image(np.zeros(0, np.uint8), (2 * gray.shape[0], 2 * gray.shape[1]), gray)


# --- what is measured, by other means


@settings(max_examples=100, deadline=None)
@given(pictures)
def test_variance_of_the_laplacian_is_that_of_the_sums_of_neighbours(gray):
    wide = np.pad(gray.astype(np.int64), 1, mode="reflect" if min(gray.shape) > 1 else "edge")
    if min(gray.shape) == 1:  # np.pad cannot reflect one row; its neighbours are itself
        sides = [((1, 1), "reflect" if side > 1 else "edge") for side in gray.shape]
        wide = np.pad(gray.astype(np.int64), (sides[0][0], (0, 0)), mode=sides[0][1])
        wide = np.pad(wide, ((0, 0), sides[1][0]), mode=sides[1][1])
    edges = wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:] - 4 * wide[1:-1, 1:-1]
    n, total, squares = edges.size, int(edges.sum()), int((edges**2).sum())
    exact = (n * squares - total * total) / (n * n)  # of Python's integers
    assert laplacian_variance(gray) == pytest.approx(exact, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("side", [8, 56])
def test_variance_in_closed_form(side):
    columns = np.arange(side)
    board = ((columns + columns[:, None]) % 2 * 10).astype(np.uint8)  # each pixel differs from its four neighbours
    assert laplacian_variance(board) == 40.0**2
    assert laplacian_variance(np.full((side, side), 77, np.uint8)) == 0.0
    slope = np.broadcast_to(columns, (side, side)).astype(np.uint8)  # bent only at both ends, by 2 and -2
    assert laplacian_variance(slope) == pytest.approx(2 * 4 / side)


@settings(max_examples=100, deadline=None)
@given(pictures)
def test_tones_are_those_of_the_sorted_pixels(gray):
    pixels = sorted(gray.ravel().tolist())
    low, high = (pixels[-(-len(pixels) * share // 20) - 1] for share in (1, 19))
    mean, spread = tones(gray)
    assert mean == pytest.approx(sum(pixels) / len(pixels), rel=1e-12)
    assert (spread, type(spread)) == (high - low, int)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 30), st.integers(1, 30))
def test_chroma_is_the_mean_of_largest_less_smallest(seed, height, width):
    bgr = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    most = [max(pixel) - min(pixel) for pixel in bgr.reshape(-1, 3).tolist()]
    assert mean_chroma(bgr) == pytest.approx(sum(most) / len(most), rel=1e-12)


def test_half_size_values_are_those_of_the_full_picture_halved(face_data):
    """The decoder's own half-size picture, against the full one averaged 2 x 2: both show the same face."""
    rec = face_data / "orl" / "train.rec"
    images = scan(Partition(0, 0, "recordio", str(rec), 0, rec.stat().st_size, None, True)).images[::20]
    columns = sign(Scanned.of_images(images), BuildConfig(filters={"blur": {}, "exposure": {}}))
    full = [cv2.imdecode(image, cv2.IMREAD_GRAYSCALE) for image in images]
    halves = [cv2.resize(gray, (56, 56), interpolation=cv2.INTER_AREA) for gray in full]
    variance = np.array([cv2.Laplacian(half, cv2.CV_64F).var() for half in halves])
    assert np.corrcoef(columns["measured.blur.variance"], variance)[0, 1] > 0.99
    assert np.abs(columns["measured.exposure.mean"] - [gray.mean() for gray in full]).max() < 1


# --- verdicts


@pytest.mark.parametrize(
    ("one", "gray", "verdict"),
    [
        (Blur(min_variance=1600.5), "board", ("blurred", "variance 1600 < 1600.5")),
        (Blur(min_variance=1600), "board", None),
        (Exposure(), "black", ("dark", "mean 0 < 12")),
        (Exposure(), "white", ("bright", "mean 255 > 240")),
        (Exposure(), "flat", ("flat", "spread 0 < 20")),
        (Exposure(min_mean=0, max_mean=255, min_spread=0), "black", None),
        (Exposure(min_spread=10), "board", None),
        (Exposure(min_spread=10.5), "board", ("flat", "spread 10 < 10.5")),
    ],
)
def test_verdicts_on_gray(one, gray, verdict):
    columns = np.arange(56)
    board = ((columns + columns[:, None]) % 2 * 10 + 100).astype(np.uint8)
    shades = {"board": board, "black": board * 0, "white": board * 0 + 255, "flat": board * 0 + 128}
    assert one.check(gray_image(shades[gray])) == verdict


@pytest.mark.parametrize(
    ("size", "verdict"),
    [
        ((112, 112), None),
        ((40, 80), None),
        ((39, 39), ("small", "side 39 < 40")),
        ((300, 39), ("small", "side 39 < 40")),
        ((81, 40), ("narrow", "aspect 2.02 > 2")),
        ((40, 81), ("narrow", "aspect 2.02 > 2")),
        ((40_000, 20_001), None),
        ((80_001, 40_000), ("narrow", "aspect 2.00002 > 2")),  # in as many digits as tell it from the threshold
    ],
)
def test_verdicts_on_size(size, verdict):
    found = Size().check(Image(np.zeros(0, np.uint8), size, np.zeros((4, 4), np.uint8)))
    assert found == verdict


def texture(seed=0, side=112):
    small = np.random.default_rng(seed).integers(40, 216, (side // 4, side // 4, 3), np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def test_gray_of_one_channel_and_of_three():
    colour = texture()
    gray = cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY)
    for suffix in (".jpg", ".png"):
        assert Gray().check(image_of(colour, suffix)) is None
        for picture in (gray, np.repeat(gray[..., None], 3, 2)):
            reason, detail = Gray().check(image_of(picture, suffix))
            assert (reason, detail.partition(" ")[0], detail[-4:]) == ("gray", "chroma", " < 4")
    sepia = np.clip(gray[..., None] * [0.6, 0.8, 1.0], 0, 255).astype(np.uint8)  # one tint counts as colour
    assert Gray().check(image_of(sepia)) is None


def test_colours_are_decoded_once_and_only_when_they_are_asked_for(monkeypatch):
    decoded = []
    real = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, mode: decoded.append(mode) or real(data, mode))
    turned = cv2.IMREAD_IGNORE_ORIENTATION
    gray = encode(texture()[..., 0], ".jpg")
    sign(Scanned.of_images([gray]), BuildConfig(filters=ALL))
    assert decoded == [cv2.IMREAD_REDUCED_GRAYSCALE_2 | turned]
    sign(Scanned.of_images([encode(texture(), ".jpg")]), BuildConfig(filters=ALL))
    assert decoded[1:] == [cv2.IMREAD_REDUCED_GRAYSCALE_2 | turned, cv2.IMREAD_REDUCED_COLOR_2 | turned]
    image = image_of(texture())
    assert image.bgr is image.bgr
    assert np.array_equal(image.bgr, real(encode(texture()), cv2.IMREAD_REDUCED_COLOR_2))


def test_an_image_cannot_be_written_by_a_filter():
    image = image_of(texture())
    for array in (image.encoded, image.gray, image.bgr):
        with pytest.raises(ValueError, match="read-only"):
            array += 1


def test_channels_as_stored():
    colour, alpha = texture(), np.dstack([texture(), texture()[..., 0]])
    wanted = [(".jpg", colour, 3), (".jpg", colour[..., 0], 1), (".png", colour, 3), (".png", colour[..., 0], 1)]
    for suffix, picture, channels in [*wanted, (".png", alpha, 4)]:
        assert image_header(memoryview(encode(picture, suffix))) == (suffix[1:].replace("jpg", "jpeg"), channels)
    whole = encode(colour, ".jpg").tobytes()
    at = whole.index(b"\xff\xc0") + 9  # where a frame header says it
    assert image_header(memoryview(whole[: at + 1])).channels == 3
    assert image_header(memoryview(whole[:at])).channels == 0
    with pytest.raises(ValueError, match="JPEG without a frame header"):
        image_header(memoryview(whole[: at - 1]))


@pytest.mark.parametrize(
    ("height", "width", "suffix"), [(1, 1, ".jpg"), (1, 2, ".jpg"), (3, 1, ".jpg"), (2, 500, ".png")]
)
def test_the_smallest_images_have_a_verdict(height, width, suffix):
    rows = Scanned.of_images([encode(np.full((height, width, 3), 9, np.uint8), suffix)])
    columns = sign(rows, BuildConfig(image_size=(0, 0), filters=ALL))
    names = (*REASONS, *BuildConfig(filters=ALL).filter_reasons)
    assert names[rows.reason[0]] == "small"
    assert columns["measured.size.side"][0] == min(height, width)
    assert columns["measured.blur.variance"][0] == 0


def test_what_is_broken_in_itself_is_not_measured():
    sound = encode(texture(), ".jpg")
    rows = Scanned.of_images([sound, sound[:200], np.zeros(0, np.uint8), encode(texture(side=64)), None, sound])
    rows.drop(5, "bad_label", "nan")
    config = BuildConfig(filters={"blur": {"min_variance": 1e6}, "size": {}})
    columns = sign(rows, config)
    names = (*REASONS, *config.filter_reasons)
    reasons = [names[code] for code in rows.reason]
    assert reasons == ["blurred", "undecodable", "undecodable", "wrong_size", "kept", "bad_label"]
    assert np.isfinite(columns["measured.blur.variance"]).tolist() == [True] + [False] * 5
    assert columns["hashed"].tolist() == [True, False, False, False, False, True]


def test_all_filters_measure_and_the_first_gives_the_reason():
    rows = Scanned.of_images([encode(np.zeros((112, 112, 3), np.uint8))])
    config = BuildConfig(filters={"blur": {}, "gray": {}, "exposure": {}})  # asked in the registry's order
    columns = sign(rows, config)
    assert rows.detail == ["mean 0 < 12"]
    measured = {name: values[0] for name, values in columns.items() if name.startswith("measured.")}
    assert measured == {
        f"measured.{name}": 0.0 for name in ("exposure.mean", "exposure.spread", "gray.chroma", "blur.variance")
    }


def test_without_filters_nothing_is_measured():
    columns = sign(Scanned.of_images([encode(texture(), ".jpg")]), BuildConfig())
    assert set(columns) == {"height", "width", "sha256", "phash", "signed", "hashed"}


# --- settings


def test_filters_are_settled_with_all_their_settings_in_the_registrys_order():
    assert BuildConfig().filters == {}
    one, two = (BuildConfig(filters=wanted) for wanted in ({"blur": {}, "size": {}}, {"size": {}, "blur": {}}))
    assert one == two
    assert list(one.filters) == ["size", "blur"]
    assert one.filters == {"size": {"min_side": 40, "max_aspect": 2.0}, "blur": {"min_variance": 30.0}}
    assert one.filter_reasons == ("small", "narrow", "blurred")


@pytest.mark.parametrize(
    ("values", "blur"),
    [
        ({"filters": ["blur"]}, 30.0),
        ({"filters": {"blur": None}}, 30.0),
        ({"filters": {"blur": True}}, 30.0),
        ({"filters": {"blur": {"min_variance": 7}}}, 7.0),
        ({"filters.blur": {"min_variance": 7}}, 7.0),
        ({"filters.blur": True}, 20.0),
        ({"filters.blur.min_variance": 7}, 7.0),
        ({"filters.blur.min_variance": 7, "filters": ["blur"]}, 7.0),
        ({"filters.size.min_side": 7}, 20.0),
        ({"seed": 3}, 20.0),
        ({"filters": []}, None),
        ({"filters": None}, None),
        ({"filters": ["size"]}, None),
        ({"filters.blur": False}, None),
        ({"filters": {"blur": False, "size": True}}, None),
    ],
)
def test_ways_to_say_it_over_a_file_that_says_20(values, blur):
    base = make_config({"filters": {"blur": {"min_variance": 20}}}, "file", BuildConfig())
    found = make_config(values, "--set", base).filters.get("blur")
    assert found == (None if blur is None else {"min_variance": blur})


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"filters": ["blurr"]}, "filters: no filter 'blurr'; there are size, exposure, gray, blur"),
        ({"filters.blurr.min_variance": 3}, "filters: no filter 'blurr'; there are size, exposure, gray, blur"),
        ({"filters": {1: {}}}, "filters: no filter '1'; there are size, exposure, gray, blur"),
        ({"filters": "blur"}, "filters: 'blur' is neither a list of names nor a mapping of names to their settings"),
        ({"filters": [1]}, "filters: [1] is neither a list of names nor a mapping of names to their settings"),
        ({"filters": {"blur": 30}}, "filters.blur: 30 is no mapping of its settings"),
        ({"filters.blur": 30}, "filters.blur: 30 is no mapping of its settings"),
        ({"filters.blur.variance": 30}, "filters.blur: unknown key 'variance'; known keys: min_variance"),
        ({"filters.blur.REASONS": 30}, "filters.blur: unknown key 'REASONS'; known keys: min_variance"),
        ({"filters.blur.min_variance": "much"}, "filters.blur: min_variance: 'much' is not of type float"),
        ({"filters.blur.min_variance": math.nan}, "filters.blur: min_variance: nan is not of type float"),
        ({"filters.blur.min_variance": -1}, "filters.blur: min_variance: -1.0 is outside 0..1000000.0"),
        ({"filters.exposure.min_mean": 250}, "filters.exposure: min_mean: 250 is above max_mean 240"),
        ({"filters.exposure.max_mean": 256}, "filters.exposure: max_mean: 256.0 is outside 0..255"),
        ({"filters.gray.min_chroma": True}, "filters.gray: min_chroma: True is not of type float"),
        ({"filters.size.min_side": 2.5}, "filters.size: min_side: 2.5 is not of type int"),
        ({"filters.size.max_aspect": 0.5}, "filters.size: max_aspect: 0.5 is outside 1..65535"),
    ],
)
def test_settings_that_are_none(values, line):
    with pytest.raises(ConfigError) as error:
        make_config(values, "--set", BuildConfig())
    assert str(error.value) == f"--set: {line}"


# --- filters of others


@dataclass(frozen=True)
class Odd:
    """A filter of which a test says what it returns."""

    REASONS: ClassVar[tuple[str, ...]] = ("odd",)

    def check(self, image):
        return None


@pytest.mark.parametrize(
    ("verdict", "line"),
    [
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (lambda image: image.colour, "AttributeError: 'Image' object has no attribute 'colour'"),
        (lambda image: image.measure("oddity", math.nan), "ValueError: oddity is nan"),
        (lambda image: image.measure("oddity", "much"), "ValueError: could not convert string to float: 'much'"),
        (True, "returned True, not None or (reason, detail)"),
        (False, "returned False, not None or (reason, detail)"),
        ("odd", "returned 'odd', not None or (reason, detail)"),
        (("odd",), "returned ('odd',), not None or (reason, detail)"),
        (("odd", None), "returned ('odd', None), not None or (reason, detail)"),
        (("odd", 3.5), "returned ('odd', 3.5), not None or (reason, detail)"),
        (("strange", "3"), "returned the reason 'strange', not one of its own: odd"),
        (("undecodable", "3"), "returned the reason 'undecodable', not one of its own: odd"),
    ],
)
def test_a_broken_filter_is_named(monkeypatch, verdict, line):
    def check(self, image):
        if isinstance(verdict, Exception):
            raise verdict
        return verdict(image) if callable(verdict) else verdict

    monkeypatch.setitem(registry.FILTERS, "odd", type("Odd", (Odd,), {"check": check}))
    rows = Scanned.of_images([None, encode(texture())])
    with pytest.raises(BrokenFilterError) as error:
        sign(rows, BuildConfig(filters={"odd": {}}))
    assert str(error.value) == f"filter odd: {line}"
    assert error.value.row == 1
    assert isinstance(error.value, BuildError)


def test_colours_that_cannot_be_decoded_are_the_records_fault(monkeypatch):
    real = cv2.imdecode
    refuse = cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION
    monkeypatch.setattr(cv2, "imdecode", lambda data, mode: None if mode == refuse else real(data, mode))
    rows = Scanned.of_images([encode(texture())])
    sign(rows, BuildConfig(filters={"gray": {}}))
    assert (REASONS[rows.reason[0]], rows.detail[0]) == ("undecodable", "the decoder refuses its colours")


@pytest.mark.parametrize(
    ("reasons", "line"),
    [
        (("kept",), "drop reason 'kept' is one of the build"),
        (("damaged",), "drop reason 'damaged' is one of the build"),
        (("label_original",), "drop reason 'label_original' is one of the build"),
        (("blurred",), "drop reason 'blurred' is one of filter blur"),
        (("odd", "odd"), "drop reason 'odd' is one of filter odd"),
        (("Odd one",), "drop reason 'Odd one' is no name of a to z, digits and _"),
        ((3,), "drop reason 3 is no name of a to z, digits and _"),
        ((), "REASONS () is no tuple of drop reasons"),
        ("odd", "REASONS 'odd' is no tuple of drop reasons"),
    ],
)
def test_drop_reasons_that_are_none(monkeypatch, reasons, line):
    monkeypatch.setitem(registry.FILTERS, "odd", type("Odd", (Odd,), {"REASONS": reasons}))
    with pytest.raises(ConfigError) as error:
        settle({"blur": {}, "odd": {}})
    assert str(error.value) == f"filters.odd: {line}"


def test_own_reasons_are_no_reasons_of_the_build():
    made = registry.make_filters(settle(ALL))
    assert not set(reasons_of(made)) & set(DROP_REASONS)
    assert isinstance(Screen(settle(ALL), 3), screen.Screen)


# --- quantiles


def test_quantiles_over_record_tables(tmp_path):
    values = np.random.default_rng(1).permutation(1000).astype(np.float32)
    cut = [values[:300], values[300:301], values[301:]]
    paths = []
    for number, part in enumerate(cut):
        column = np.append(part, np.float32(np.nan))  # a row that was not measured
        more = {"measured.size.side": np.full(len(column), 112, np.float32)} if number == 2 else {}
        paths.append(tmp_path / f"part-{number}.parquet")
        pq.write_table(pa.table({"sid": np.arange(len(column)), "measured.blur.variance": column, **more}), paths[-1])
    pq.write_table(pa.table({"sid": [1]}), tmp_path / "empty.parquet")  # nothing in it could be decoded
    one, two = quantiles([*paths, tmp_path / "empty.parquet"])
    assert (one["filter"], one["measure"], one["images"]) == ("blur", "variance", 1000)
    assert list(one["quantiles"].values()) == [max(0, round(share * 1000) - 1) for share in SHARES]
    assert (two["filter"], two["images"], set(two["quantiles"].values())) == ("size", 700, {112.0})
    lines = list(quantile_lines([one, two]))
    assert lines[0].split()[:4] == ["value", "measured", "0", "%"]
    assert lines[1].split() == ["blur", "variance", *["0", "0", "9", "49", "499", "949", "989", "998", "999"]]
    assert len({len(line) for line in lines}) == 1
    assert quantiles([tmp_path / "empty.parquet"]) == []
    assert list(quantile_lines([])) == []
