"""Draws parametric faces: one picture from three numbers (seed, identity, image), each drawable alone.

An identity is a vector of traits (shape, colours, hair, marks), a photograph adds nuisances (pose, light, expression,
background, noise, JPEG quality) that change far more pixels than the identity does. So raw pixels verify poorly while
a network that has learned what lasts tells unseen identities apart (figures in the tests of `pipelines.synthetic`).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.synthetic.ranges import NUISANCES, TRAITS

SIZE = 112
"""Height and width of a face in pixels; InsightFace's aligned crops."""

_CANVAS = 2  # drawn at twice the size and averaged down: cheaper than cv2's anti-aliased polygons
_SHIFT = 4  # fractional bits of the coordinates handed to cv2

_TURN = np.linspace(0, 2 * np.pi, 28, endpoint=False)
_RING = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)  # (28, 2) unit circle, from the right, clockwise on screen
_AXIS = (np.arange(SIZE, dtype=np.float32) - SIZE / 2) / (SIZE / 2)  # (112,) -1..1 across the picture
_LEVELS = np.arange(256) / 255.0

Points = NDArray[np.float64]  # (K, 2) x, y in pixels from the head's centre
Colour = NDArray[np.float64]  # (3,) blue, green, red in 0..255


def generator(*words: int) -> np.random.Generator:
    """Returns the random numbers that belong to `words` (each >= 0) and to nothing else."""
    # numpy pads the entropy with zeros, so that (1, 2) would equal (1, 2, 0): the count in front tells them apart
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((len(words), *words))))


def traits(seed: int, identity: int) -> dict[str, float]:
    """Returns what all photographs of an identity share: a value for each name in the table of ranges."""
    draws = generator(seed, identity).random(len(TRAITS)).tolist()
    return {name: low + (high - low) * draw for (name, (low, high)), draw in zip(TRAITS.items(), draws, strict=True)}


class _Sheet:
    """Shapes in drawing order; their points are moved to the canvas in one numpy call, for speed."""

    def __init__(self) -> None:
        self.points: list[Points] = []
        self.depth: list[float] = []
        self.style: list[tuple[tuple[float, ...], float]] = []

    def add(self, points: Points, colour: Colour, depth: float = 0.0, line: float = 0.0) -> None:
        """Adds a filled polygon, or an open line `line` px thick; `depth` is px in front of the head's axis."""
        self.points.append(points)
        self.depth.append(depth)
        self.style.append((tuple(colour.tolist()), line))

    def draw(self, canvas: NDArray[np.uint8], how: dict[str, float]) -> None:
        """Draws every shape as seen under the pose in `how`."""
        lengths = [len(points) for points in self.points]
        points = np.concatenate(self.points)
        depth = np.repeat(self.depth, lengths)
        x = points[:, 0] * np.cos(how["yaw"]) + depth * np.sin(how["yaw"])
        y = points[:, 1] * np.cos(how["pitch"]) + depth * np.sin(how["pitch"])
        cos, sin = np.cos(how["roll"]) * np.exp(how["zoom"]), np.sin(how["roll"]) * np.exp(how["zoom"])
        placed = np.stack([x * cos - y * sin + SIZE / 2 + how["x"], x * sin + y * cos + 60 + how["y"]], axis=1)
        fixed = np.round(placed * (_CANVAS << _SHIFT)).astype(np.int32)
        start = 0
        for length, (colour, line) in zip(lengths, self.style, strict=True):
            part = fixed[start : start + length]
            start += length
            if line:
                cv2.polylines(canvas, [part], False, colour, max(1, round(line * _CANVAS)), cv2.LINE_8, _SHIFT)
            else:
                cv2.fillPoly(canvas, [part], colour, cv2.LINE_8, _SHIFT)


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    return a + (b - a) * min(max(share, 0.0), 1.0)


def _bgr(*levels: float) -> Colour:
    return np.array(levels, dtype=np.float64)


def _oval(x: float, y: float, width: float, height: float, power: float = 2.0, tilt: float = 0.0) -> Points:
    """Returns (28, 2) points of a superellipse; `width` and `height` are half axes, `tilt` shears y by x."""
    ring = _RING if power == 2.0 else np.sign(_RING) * np.abs(_RING) ** (2 / power)
    points = ring * (width, height)
    points[:, 1] += tilt * points[:, 0] + y
    points[:, 0] += x
    return points


def _colours(who: dict[str, float]) -> tuple[Colour, Colour, Colour, Colour]:
    """Returns skin, hair, iris and lips."""
    skin = _mix(_bgr(48, 70, 104), _bgr(178, 200, 236), who["tone"])
    skin = skin + _bgr(-who["warmth"], -who["flush"] / 2, who["flush"] / 2 + who["warmth"] / 3)
    hair = _mix(_bgr(16, 18, 24), _bgr(92, 150, 190), who["hair_light"] ** 1.5)
    hair = _mix(hair, hair * (0.6, 0.75, 1.25), who["hair_red"])
    hair = _mix(hair, _bgr(185, 188, 190), who["hair_gray"])
    brown, green, blue, hue = _bgr(25, 55, 90), _bgr(60, 130, 70), _bgr(190, 140, 80), who["iris_hue"] * 2
    iris = _mix(brown, _mix(green, blue, hue - 1), hue)
    lips = _mix(skin * (0.78, 0.75, 0.92), _bgr(70, 55, 190), who["lip_red"] * 0.8) * who["lip_dark"]
    return skin, hair, iris * who["iris_light"], lips


def _head(sheet: _Sheet, who: dict[str, float], skin: Colour, hair: Colour, cloth: Colour) -> None:
    """Adds hair behind, neck, shoulders, ears, the face's outline, cheeks, beard and the hair in front."""
    width, top, chin = who["head_width"], who["head_top"], who["chin"]
    upper, lower = _oval(0, 0, width, top, who["crown"])[14:], _oval(0, 0, width, chin, who["jaw"])[:14]
    volume, length = who["hair_volume"], who["hair_length"]
    flare = width * volume * who["hair_flare"]
    sides = np.array([[width * volume, 0], [flare, length], [-flare, length], [-width * volume, 0]])
    sides[:, 1] = np.maximum(sides[:, 1], -6)
    sheet.add(np.concatenate([upper * volume, sides]), hair * 0.8, depth=-12)
    neck = who["neck"]
    sheet.add(np.array([[-neck, 20], [neck, 20], [neck + 3, 70], [-neck - 3, 70]]), skin * 0.72, depth=-6)
    sheet.add(_oval(0, 82, 62, 24, 2.6), cloth, depth=-6)
    if who["hair_length"] < 20:
        for side in (-1, 1):
            sheet.add(_oval(side * (width + 1), who["ear_y"], who["ear"], who["ear"] * 1.6), skin * 0.86, depth=-8)
    sheet.add(np.concatenate([lower, upper]), skin)
    blush = _mix(skin, _bgr(120, 110, 220), 0.22 * who["cheek"])
    for side in (-1, 1):
        sheet.add(_oval(side * (who["eye_x"] + 3), who["eye_y"] + 17, 8, 6), blush, depth=7)
    if who["beard"] > 0:
        rim = lower * (0.98, 0.99)
        edge = chin * who["beard_top"]
        inner = np.array([[-0.8, 0.4], [-0.45, 0.8], [0, 1], [0.45, 0.8]]) * (width, edge)
        sheet.add(np.concatenate([rim, inner]), _mix(skin, hair, 0.25 + who["beard"] * 0.7))
    across = np.linspace(1, -1, 9)
    line = -top * who["hairline"] + who["fringe_tilt"] * width * across + who["fringe_bend"] * across**2
    front = np.stack([across * width * 1.02, np.maximum(line, -top * np.sqrt(1.02 - across**2))], axis=1)
    sheet.add(np.concatenate([upper * (1.03, 1.04), front]), hair, depth=3)


def _features(sheet: _Sheet, who: dict[str, float], how: dict[str, float], paint: tuple[Colour, ...]) -> None:
    """Adds eyes, brows, nose, mouth, moles and glasses."""
    skin, hair, iris, lips = paint
    eye_x, eye_y, dark = who["eye_x"], who["eye_y"], skin * who["nose_dark"]
    tall = who["eye_height"] * max(0.3, 1 + how["eye_open"])
    for side in (-1, 1):
        sheet.add(_oval(side * eye_x, eye_y, who["eye_width"] + 1.5, tall + 2, 2.0, side * who["eye_slant"]), dark, 9)
        white = _oval(side * eye_x, eye_y, who["eye_width"], tall, 2.0, side * who["eye_slant"])
        sheet.add(white, _bgr(225, 228, 230), 10)
        look = side * eye_x + how["gaze"] * who["eye_width"]
        ball = min(tall * 1.05, who["eye_width"] * 0.62) * who["iris"]
        sheet.add(_oval(look, eye_y, ball, ball), iris, 10)
        sheet.add(_oval(look, eye_y, ball * 0.45, ball * 0.45), _bgr(12, 12, 14), 10)
        sheet.add(white[14:], skin * 0.35, 10, line=who["lid"])
        across = np.linspace(-1, 1, 5)
        rise = side * who["brow_angle"] * who["brow_width"] * across - who["brow_bend"] * (1 - across**2)
        brow_y = eye_y - who["brow_y"] - how["brow_lift"] + rise
        brow_x = side * (eye_x + who["brow_gap"]) + who["brow_width"] * across
        sheet.add(np.stack([brow_x, brow_y], axis=1), _mix(hair, skin * 0.5, 0.25), 9, line=who["brow_thick"])
    tip, wide, bridge = eye_y + who["nose_length"], who["nose_width"], who["nose_bridge"]
    sheet.add(np.array([[-bridge, eye_y], [bridge, eye_y], [wide, tip], [-wide, tip]]), _mix(skin, dark, 0.45), 12)
    sheet.add(_oval(0, tip, wide, 3.2), dark, 16)
    sheet.add(_oval(0, tip - 1.5, wide * 0.55, 3.2), _mix(skin, _bgr(255, 255, 255), 0.12), 17)
    mouth, half = tip + who["mouth_y"], who["mouth_width"] * (1 + 0.10 * how["smile"])
    if who["moustache"] > 0:
        stripe = _oval(0, (tip + mouth) / 2 + 1, half * 0.95, 3.4, 2.6)
        sheet.add(stripe, _mix(skin, hair, 0.3 + who["moustache"] * 0.65), 12)
    gap = max(0.0, how["mouth_open"]) * 2.2
    across = np.linspace(-1, 1, 9)
    bow, curl = 1 - across**2, -2.2 * how["smile"] * across**2
    rim_top = np.stack([across * half, mouth - bow * (gap / 2 + who["lip_top"]) + curl], axis=1)
    rim_low = np.stack([across * half, mouth + bow * (gap / 2 + who["lip_low"]) + curl], axis=1)
    sheet.add(np.concatenate([rim_top, rim_low[::-1]]), lips, 11)
    inner = np.stack([across * half * 0.9, mouth + bow * (gap / 2 + 0.3) + curl], axis=1)
    inner_top = np.stack([across * half * 0.9, mouth - bow * (gap / 2 + 0.3) + curl], axis=1)
    sheet.add(np.concatenate([inner_top, inner[::-1]]), _mix(_bgr(30, 25, 60), _bgr(225, 230, 232), gap / 6), 11)
    for mole in ("mole_a", "mole_b"):
        if who[mole] > 0:
            x, y, radius = who[mole + "_x"] * who["head_width"], who[mole + "_y"] * who["chin"], 0.8 + 1.4 * who[mole]
            sheet.add(_oval(x, y, radius, radius), skin * 0.4, 8)
    if who["glasses"] > 0:
        frame = np.full(3, who["glasses_dark"])
        for side in (-1, 1):
            rim = _oval(side * eye_x, eye_y + 1, min(who["glasses_size"], eye_x - 1), 8.5, who["glasses_round"])
            sheet.add(np.concatenate([rim, rim[:1]]), frame, 13, line=who["glasses_thick"])
            bow_end = np.array([[side * (eye_x + 8), eye_y - 1], [side * who["head_width"], eye_y - 2]])
            sheet.add(bow_end, frame, 6, line=who["glasses_thick"])
        sheet.add(np.array([[-4.0, eye_y], [4.0, eye_y]]), frame, 14, line=who["glasses_thick"])


def _texture(rng: np.random.Generator, cells: int, channels: int, spread: float) -> NDArray[np.float32]:
    """Returns a smooth random field, (112, 112, `channels`) float32 of deviation about `spread`, mean 0."""
    grid = rng.standard_normal((cells, cells, channels), dtype=np.float32) * np.float32(spread)
    field = cv2.resize(grid, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return field.reshape(SIZE, SIZE, channels).astype(np.float32, copy=False)


def draw_face(seed: int, identity: int, image: int) -> tuple[NDArray[np.uint8], int]:
    """Returns a photograph, (112, 112, 3) uint8 in OpenCV's blue-green-red order, and its JPEG quality (60..95)."""
    who = traits(seed, identity)
    rng = generator(seed, identity, image)
    draws = np.clip(rng.standard_normal(len(NUISANCES)), -2.5, 2.5).tolist()
    how = {name: spread * draw for (name, spread), draw in zip(NUISANCES.items(), draws, strict=True)}

    backdrop = rng.uniform(30, 220, 3).astype(np.float32) + _texture(rng, 3, 3, 32) + _texture(rng, 14, 1, 22)
    large = cv2.resize(np.clip(backdrop, 0, 255).astype(np.uint8), (SIZE * _CANVAS, SIZE * _CANVAS))
    canvas = np.asarray(large, np.uint8)
    sheet = _Sheet()
    paint = _colours(who)
    _head(sheet, who, paint[0], paint[1], rng.uniform(20, 230, 3))
    _features(sheet, who, how, paint)
    sheet.draw(canvas, how)
    picture = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA)

    # exposure, contrast, gamma and colour cast act on single levels: one table for each channel
    cast = np.exp([how["cast_blue"], how["cast_green"], how["cast_red"]]) * np.exp(how["exposure"])
    levels = ((_LEVELS ** np.exp(how["gamma"]) - 0.5) * np.exp(how["contrast"]) + 0.5)[:, None, None] * cast * 255
    picture = cv2.LUT(picture, np.clip(levels, 0, 255).astype(np.uint8).reshape(256, 1, 3))
    # a slope of light, soft shadows, and a finer mottling that keeps the perceptual hashes of any two pictures apart
    light = 1 + how["light_x"] * _AXIS + (how["light_y"] * _AXIS)[:, None] + _texture(rng, 5, 1, 0.13)[..., 0]
    light += _texture(rng, 18, 1, 0.06)[..., 0]
    grain = rng.standard_normal((SIZE, SIZE), dtype=np.float32) * np.float32(rng.uniform(1, 6))
    picture = cv2.multiply(picture, cv2.merge([np.maximum(light, 0.15)] * 3), dtype=cv2.CV_8U)  # rounds, saturates
    picture = cv2.add(picture, cv2.merge([grain] * 3), dtype=cv2.CV_8U)
    blur = float(rng.uniform(0, 1.1))
    if blur > 0.35:
        picture = cv2.GaussianBlur(picture, (5, 5), blur)
    return np.asarray(picture, np.uint8), int(rng.integers(60, 96))


def encode_jpeg(picture: NDArray[np.uint8], quality: int) -> bytes:
    """Returns `picture`, (H, W, 3) uint8 blue-green-red, as JPEG."""
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def encode_face(seed: int, identity: int, image: int) -> bytes:
    """Returns the JPEG of one photograph."""
    return encode_jpeg(*draw_face(seed, identity, image))
