"""The built-in data set: street scenes drawn on the fly from a seed, without a download."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import copysign, exp
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from crosscoop.data.dataset import VOID, Array, SegmentationDataset
from crosscoop.errors import CrosscoopError

Panel = NDArray[np.float64]
"""A parallelogram in the street: a homography `(3, 3)` from fractions of its sides to 1/16 pixels."""

Shape = NDArray[np.float64]
"""Polygons `(N, K, 2)` on a panel, whose bottom left corner is (0, 0) and whose top right corner is (1, 1)."""

Tint = NDArray[np.float64]
"""A colour `(3,)` of floats; it may exceed the range 0 to 255 until it is painted."""

SPLITS = ("train", "val", "test")

# Surfaces first, then the things that stand on them: `Canvas.annotate` relies on this order.
SKY, ROAD, MARKING, PAVEMENT, BUILDING, WALL, TREE, POLE, SIGN, PERSON, CAR, BUS = range(12)

# fmt: off
# Classes share colours on purpose, so that a pixel's colour does not reveal its class: clothes, cars, shops and
# signs are PAINTS; facades, walls, pavements and some buses are STONES; every window is GLASS.
WHITE, DARK = np.array([232, 232, 228]), np.array([30, 30, 34])
PAINTS = np.array([(185, 35, 40), (35, 75, 160), (230, 190, 50), WHITE, DARK, (128, 132, 138)])
STONES = np.array([(150, 142, 132), (178, 150, 120), (132, 84, 68), (190, 186, 176), (112, 112, 116)])
GREENS = np.array([(62, 96, 46), (88, 112, 52), (46, 76, 46), (142, 112, 48)])
GLASS = np.array([(62, 76, 92), (32, 36, 46), (152, 180, 205)])
SKINS = np.array([(225, 180, 150), (160, 110, 80), (90, 60, 45)])
ASPHALTS = np.array([(92, 92, 96), (112, 112, 116), (72, 74, 80)])
SKIES = np.array([[(90, 140, 215), (205, 220, 232)],  # at the zenith and at the horizon
                  [(190, 195, 200), (212, 214, 214)],
                  [(90, 95, 150), (238, 185, 140)]])

ANGLES = np.arange(16) * np.pi / 8
ROUND = 0.5 + 0.5 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)[None]
SQUARE = np.array([[(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]])
TRIANGLE = np.array([[(0, 0), (1, 0), (0.5, 1)]])
DIAMOND = np.array([[(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)]])
LEGS = np.array([[(0.1, 0), (0.35, 0), (0.5, 0.35), (0.65, 0), (0.9, 0), (0.75, 0.5), (0.25, 0.5)]])
TORSO = np.array([[(0.2, 0.42), (0.8, 0.42), (1, 0.5), (0.8, 0.85), (0.2, 0.85), (0, 0.5)]])
# fmt: on

FOCAL = 1.2  # focal length in image heights: 80 degrees across a 2:1 image, like a dashboard camera
EYE = 1.5  # height of the camera above the ground in metres
NEAR, FAR = 2.0, 80.0  # distances in metres at which the street begins and ends


@lru_cache(maxsize=256)
def grid(columns: int, rows: int, width: float, height: float) -> Shape:
    """Return a grid of rectangles, each in the middle of its cell and filling the given fractions of it."""
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 1, 2)
    rectangles: Shape = (cells + 0.5 + (SQUARE - 0.5) * (width, height)) / (columns, rows)
    return rectangles


def part(panel: Panel, left: float, bottom: float, right: float, top: float) -> Panel:
    """Return the part of a panel between two corners, given as fractions of the panel."""
    inner: Panel = panel @ np.array([[right - left, 0, left], [0, top - bottom, bottom], [0, 0, 1]])
    return inner


class Canvas:
    """An image and its mask, drawn together with one camera and one light; later paint covers earlier paint.

    Coordinates are in metres, with x to the right of the middle of the road, y up from the ground and z ahead of the
    camera. Only the camera depends on the size of the image, so that a scene is the same street at any size.
    """

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.pixels: Array = np.empty((height, width, 4), np.uint8)  # red, green, blue and the class
        self.road = rng.uniform(3.2, 6.5)  # metres from the middle of the road to its edge
        self.front = self.road + rng.uniform(1.5, 4)  # metres from the middle of the road to the houses
        self.x = self.road / 2 + rng.uniform(-0.4, 0.4)  # metres from the middle of the road to the camera
        self.horizon, vanish = height * rng.uniform(0.38, 0.52), width / 2 + height * rng.uniform(-0.2, 0.2)
        camera = np.array([[FOCAL * height, 0, vanish], [0, -FOCAL * height, self.horizon], [0, 0, 1]])
        self.camera: Panel = np.diag([16, 16, 1]) @ camera  # OpenCV takes 1/16 pixels for `shift=4`
        self.sky, self.haze = self.pick(SKIES)
        self.visibility = rng.uniform(60, 250)
        self.taken: dict[float, float] = {}  # metres ahead at which the last vehicle of a lane begins

    def pick(self, palette: NDArray[np.int_]) -> Tint:
        """Draw a random colour of a palette, slightly altered."""
        color: Tint = palette[int(self.rng.random() * len(palette))] + 8 * self.rng.standard_normal(3)
        return color

    def upright(self, x: float, z: float, width: float, height: float, y: float = 0, length: float = 0) -> Panel:
        """Return an upright panel: it faces the camera if it has a width, and the street if it has a length."""
        panel: Panel = self.camera @ np.array([[width, 0, x - self.x], [0, height, y - EYE], [length, 0, z]])
        return panel

    def flat(self, x: float, z: float, width: float, length: float, y: float = 0, skew: float = 0) -> Panel:
        """Return a horizontal panel."""
        panel: Panel = self.camera @ np.array([[width, 0, x - self.x], [0, 0, y - EYE], [skew, length, z]])
        return panel

    def paint(self, panel: Panel, shape: Shape, color: Tint, label: int) -> None:
        """Fill a shape on a panel."""
        self.fill(cv2.perspectiveTransform(shape, panel), panel[2, 2], color, label)

    def box(self, floor: Panel, roof: Panel, color: Tint, label: int) -> None:
        """Fill the silhouette of the solid between two panels."""
        corners = np.hstack([cv2.perspectiveTransform(SQUARE, panel) for panel in (floor, roof)])
        hull = cv2.convexHull(corners.astype(np.float32))
        self.fill(hull.reshape(1, -1, 2), floor[2, 2], color, label)

    def fill(self, points: Shape, depth: float, color: Tint, label: int) -> None:
        """Fill polygons given in 1/16 pixels, in a colour that fades into the haze with depth."""
        color = self.haze + (color - self.haze) * exp(-depth / self.visibility)
        polygons: Any = points.astype(np.int32)  # OpenCV's stubs want a list, which is slower
        cv2.fillPoly(self.pixels, polygons, (*color.tolist(), label), cv2.LINE_8, 4)

    def take(self, lane: float, z: float, length: float) -> bool:
        """Reserve a stretch of a lane for a vehicle; False if it is occupied. Vehicles are placed from far to near."""
        free = z + length < self.taken.get(lane, FAR)
        if free:
            self.taken[lane] = z
        return free

    def photograph(self) -> Array:
        """Return the image: the drawing as seen through a lens, with stains, noise, exposure and a colour cast."""
        height, width, _ = self.pixels.shape
        image = cv2.cvtColor(self.pixels, cv2.COLOR_RGBA2RGB)
        image = cv2.GaussianBlur(image, (0, 0), height / 128 * self.rng.uniform(0.4, 0.9))
        for rows, strength in ((6, 0.25), (32, 0.15), (height, self.rng.uniform(0.03, 0.15))):
            grain = self.rng.integers(0, 256, (rows, max(1, rows * width // height)), np.uint8)
            grain = cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
            grain = cv2.cvtColor(grain, cv2.COLOR_GRAY2RGB)
            cv2.addWeighted(image, 1, grain, strength, -128 * strength, image)
        levels = np.linspace(0, 1, 256)[:, None] ** self.rng.uniform(0.75, 1.7) * self.rng.uniform(0.85, 1.1, 3)
        photograph: Array = cv2.LUT(image, (255 * levels.clip(0, 1)).astype(np.uint8)[None])
        return photograph

    def annotate(self) -> Array:
        """Return the mask: the classes, with a void border around each thing as in VOC, one pixel wide at 128 rows."""
        mask: Array = cv2.extractChannel(self.pixels, 3)
        size = 1 + 2 * round(len(mask) / 128)
        grown = cv2.dilate(mask, np.ones((size, size), np.uint8))  # the highest class nearby
        mask[(grown != mask) & (grown >= POLE)] = VOID
        return mask


def paint_sky(canvas: Canvas) -> None:
    """Paint a gradient from the zenith to the horizon."""
    height, width, _ = canvas.pixels.shape
    blend = (np.arange(height) / canvas.horizon).clip(0, 1)[:, None, None]
    column = np.append(canvas.sky + (canvas.haze - canvas.sky) * blend, np.full_like(blend, SKY), axis=2)
    canvas.pixels = cv2.resize(column.clip(0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)


def paint_ground(canvas: Canvas) -> None:
    """Paint the pavement with joints and a kerb as white as markings, and the road with patches."""
    rng, road, front, stone = canvas.rng, canvas.road, canvas.front, canvas.pick(STONES)
    kerb = WHITE - canvas.rng.uniform(10, 60)
    canvas.paint(canvas.flat(-300, NEAR, 600, 500), SQUARE, stone, PAVEMENT)
    canvas.paint(canvas.flat(-front, NEAR, 2 * front, 50), grid(1, 40, 1, 0.06), stone - 30, PAVEMENT)
    canvas.paint(canvas.flat(-road - 0.25, NEAR, 2 * road + 0.5, 500), SQUARE, kerb, PAVEMENT)
    canvas.paint(canvas.flat(-road, NEAR, 2 * road, 500), SQUARE, canvas.pick(ASPHALTS), ROAD)
    for z in rng.uniform(4, 30, 4):
        patch = canvas.flat(rng.uniform(-road, road - 2), z, 2, rng.uniform(1, 6))
        canvas.paint(patch, SQUARE, canvas.pick(ASPHALTS), ROAD)


def paint_markings(canvas: Canvas) -> None:
    """Paint solid or dashed lines, and perhaps a zebra crossing."""
    rng, road, white = canvas.rng, canvas.road, WHITE - canvas.rng.uniform(0, 60)
    edges, lanes = [road - 0.5, 0.5 - road], [road / 2, -road / 2]
    for x in [0, *edges * (rng.random() < 0.5), *lanes * (road > 5.5)]:
        dashes = grid(1, 16, 1, (0.5, 1)[rng.integers(2)])
        canvas.paint(canvas.flat(x, NEAR, 0.16, FAR), dashes, white, MARKING)
    if rng.random() < 0.4:
        zebra = canvas.flat(-road, rng.uniform(5, 25), 2 * road, 3)
        canvas.paint(zebra, grid(int(road), 1, 0.5, 1), white, MARKING)


def paint_shadows(canvas: Canvas) -> None:
    """Darken the ground by the shadows of houses across the street, as dark as a dark car."""
    rng, lit = canvas.rng, canvas.pixels.copy()
    reach = copysign(rng.uniform(2, 2.5 * canvas.front), rng.random() - 0.5)
    ground = canvas.flat(-copysign(canvas.front, reach), NEAR, reach, 40, skew=rng.uniform(0, 4))
    canvas.paint(ground, grid(1, int(rng.integers(2, 12)), 1, 0.6)[rng.integers(2) :], DARK, ROAD)
    cv2.addWeighted(lit, 0.5, canvas.pixels, 0.5, 0, canvas.pixels)
    canvas.pixels[..., 3] = lit[..., 3]  # a shadow has no class


def paint_windows(canvas: Canvas, panel: Panel, columns: int, rows: int, label: int) -> None:
    """Paint the rows of windows of a house or a bus, some of them lit."""
    windows = grid(columns, rows, 0.65, 0.55)
    canvas.paint(panel, windows, canvas.pick(GLASS), label)
    canvas.paint(panel, windows[canvas.rng.integers(len(windows)) :: 5], canvas.pick(STONES), label)


def paint_figure(canvas: Canvas, panel: Panel, label: int) -> None:
    """Paint a human figure: a person, or one on a poster."""
    canvas.paint(panel, LEGS, canvas.pick(PAINTS), label)
    canvas.paint(panel, TORSO, canvas.pick(PAINTS), label)
    canvas.paint(part(panel, 0.3, 0.84, 0.7, 1), ROUND, canvas.pick(SKINS), label)


def paint_poster(canvas: Canvas, wall: Panel, width: float, height: float) -> None:
    """Paint a poster of a human figure on a wall of the given size."""
    left, bottom = canvas.rng.uniform(0.1, 0.7), canvas.rng.uniform(0.3, 2) / height
    poster = part(wall, left, bottom, left + 1.6 / width, bottom + 2.4 / height)
    canvas.paint(poster, SQUARE, canvas.pick(PAINTS), BUILDING)
    paint_figure(canvas, part(poster, 0.3, 0.1, 0.7, 0.9), BUILDING)


def paint_board(canvas: Canvas, panel: Panel, label: int) -> None:
    """Paint a board of random shape with a smaller one inside: a traffic sign or a shop sign."""
    shape = (SQUARE, ROUND, TRIANGLE, DIAMOND)[canvas.rng.integers(4)]
    canvas.paint(panel, shape, canvas.pick(PAINTS), label)
    canvas.paint(part(panel, 0.22, 0.2, 0.78, 0.75), shape, canvas.pick(PAINTS), label)


def paint_crown(canvas: Canvas, x: float, z: float, size: float, y: float) -> None:
    """Paint foliage: a ragged outline, with lighter and darker leaves."""
    rng, color, panel = canvas.rng, canvas.pick(GREENS), canvas.upright(x - size / 2, z, size, size, y)
    canvas.paint(panel, 0.5 + (ROUND - 0.5) * rng.uniform(0.7, 1.05, (16, 1)), color, TREE)
    leaves = rng.normal(0.5, 0.16, (30, 1, 2)) + (ROUND[:, ::4] - 0.5) * rng.uniform(0.05, 0.22, (30, 1, 1))
    canvas.paint(panel, leaves[::2], color - 22, TREE)
    canvas.paint(panel, leaves[1::2], color + 22, TREE)


def paint_house(canvas: Canvas, x: float, z: float, length: float) -> None:
    """Paint a house with a shop or a poster along the street, and its gable towards the camera."""
    rng, color, height, depth = canvas.rng, canvas.pick(STONES), canvas.rng.uniform(5, 20), copysign(12, x)
    gable, front = canvas.upright(x, z, depth, height), canvas.upright(x, z, 0, height, length=length)
    canvas.paint(gable, SQUARE, color - 15, BUILDING)
    canvas.paint(front, SQUARE, color, BUILDING)
    paint_windows(canvas, part(front, 0, 3 / height, 1, 1), 1 + int(length / 2.5), int(height / 3), BUILDING)
    if rng.random() < 0.5:
        canvas.paint(part(front, 0.05, 0, 0.95, 2.3 / height), grid(3, 1, 0.8, 0.9), canvas.pick(GLASS), BUILDING)
        canvas.paint(part(front, 0, 2.3 / height, 1, 3 / height), SQUARE, canvas.pick(PAINTS), BUILDING)
        paint_board(canvas, canvas.upright(x - 0.4, z + length / 2, 0.9, 0.9, 2.6), BUILDING)
    else:
        paint_poster(canvas, *((gable, depth) if rng.random() < 0.5 else (front, length)), height)


def paint_garden(canvas: Canvas, x: float, z: float, length: float) -> None:
    """Paint trees behind a hedge, or behind a wall with joints like those of the pavement."""
    rng = canvas.rng
    for depth in (z + length, z + length / 2):
        paint_crown(canvas, x + copysign(2.5, x), depth, rng.uniform(4, 8), rng.uniform(0, 2))
    color, label = (canvas.pick(STONES), WALL) if rng.random() < 0.75 else (canvas.pick(GREENS), TREE)
    panel = canvas.upright(x, z, 0, rng.uniform(0.8, 2.6), length=length)
    canvas.paint(panel, SQUARE, color, label)
    canvas.paint(panel, grid(1, 4, 1, 0.08), color - 25, label)


def paint_frontage(canvas: Canvas) -> None:
    """Paint houses across the end of the street, and houses and gardens along its sides."""
    rng = canvas.rng
    for x in (-60.0, -30.0, 0.0, 30.0):
        across = canvas.upright(x, FAR, 30, rng.uniform(5, 20))
        canvas.paint(across, SQUARE, canvas.pick(STONES), BUILDING)
        paint_windows(canvas, across, 8, 4, BUILDING)
    for x in (-canvas.front, canvas.front):
        z = FAR
        while z > NEAR:
            length = min(rng.uniform(8, 22), z - 1)
            z -= length
            (paint_house if rng.random() < 0.65 else paint_garden)(canvas, x, z, length)


def paint_tree(canvas: Canvas, x: float, z: float) -> None:
    """Paint a tree whose trunk is as thin as a pole."""
    base = canvas.rng.uniform(1.8, 3)
    canvas.paint(canvas.upright(x - 0.12, z, 0.24, base + 1), SQUARE, canvas.pick(STONES) - 50, TREE)
    paint_crown(canvas, x, z, canvas.rng.uniform(2.5, 5), base)


def paint_lamp(canvas: Canvas, x: float, z: float) -> None:
    """Paint a bollard, or a lamp post with its arm over the road."""
    height, color = (1, 5, 7)[canvas.rng.integers(3)], canvas.pick(STONES) - 40
    canvas.paint(canvas.upright(x - 0.08, z, 0.16, height), SQUARE, color, POLE)
    if height > 1:
        canvas.paint(canvas.upright(x, z, -copysign(1.6, x), 0.14, height), SQUARE, color, POLE)


def paint_sign(canvas: Canvas, x: float, z: float) -> None:
    """Paint a traffic sign or a traffic light on its post."""
    width = canvas.rng.uniform(0.7, 1)
    canvas.paint(canvas.upright(x - 0.05, z, 0.1, 3), SQUARE, canvas.pick(STONES) - 20, POLE)
    board = canvas.upright(x - width / 2, z, width, width, 2.2)
    if canvas.rng.random() < 0.75:
        paint_board(canvas, board, SIGN)
    else:
        canvas.paint(part(board, 0.2, 0, 0.8, 1.5), SQUARE, DARK, SIGN)
        canvas.paint(part(board, 0.3, 0.1, 0.7, 0.5), ROUND, canvas.pick(PAINTS[:3]), SIGN)


def paint_person(canvas: Canvas, x: float, z: float) -> None:
    """Paint a person on the pavement or crossing the road."""
    x = x if canvas.rng.random() < 0.7 else x * canvas.rng.uniform(0, 0.8)
    paint_figure(canvas, canvas.upright(x - 0.3, z, 0.6, canvas.rng.uniform(1.4, 1.9)), PERSON)


def paint_clutter(canvas: Canvas, x: float, z: float) -> None:
    """Paint something without a class: a bin, a heap, a dog."""
    width, height = canvas.rng.uniform(0.5, 1.4, 2)
    ragged = 0.5 + (ROUND - 0.5) * canvas.rng.uniform(0.6, 1, (16, 1))
    canvas.paint(canvas.upright(x - width / 2, z, width, height), ragged, canvas.pick(PAINTS), VOID)


def paint_body(
    canvas: Canvas, x: float, z: float, width: float, height: float, length: float, color: Tint, label: int
) -> tuple[Panel, Panel]:
    """Paint the body of a vehicle with wheels under its long faces, and return its side and its end."""
    left = x - width / 2
    side = canvas.upright(x + copysign(width / 2, canvas.x - x), z, 0, height, 0.3, length)
    end = canvas.upright(left, z, width, height, 0.3)
    canvas.paint(canvas.flat(left - 0.2, z - 0.1, width + 0.4, length), SQUARE, DARK, ROAD)  # its shadow
    canvas.paint(canvas.flat(left, z, width, length, 0.3 + height), SQUARE, color, label)
    for face, extent, tone in ((side, length, 0.8), (end, width, 1)):
        canvas.paint(face, SQUARE, color * tone, label)
        for middle in (0.2, 0.8) if extent > 4 else ():
            wheel = part(face, middle - 0.35 / extent, -0.3 / height, middle + 0.35 / extent, 0.4 / height)
            canvas.paint(wheel, ROUND, DARK, label)
    return side, end


def paint_car(canvas: Canvas, x: float, z: float) -> None:
    """Paint a driving or parked car."""
    parks, color = canvas.rng.random() < 0.5, canvas.pick(PAINTS)
    x = copysign(canvas.road - 1.1 if parks else canvas.road / 2, x)
    if z > (4 if parks else 8) and canvas.take(x, z, 4.5):
        _, end = paint_body(canvas, x, z, 1.8, 0.65, 4.2, color, CAR)
        canvas.paint(end, grid(2, 1, 0.35, 0.25), canvas.pick(PAINTS[:4]), CAR)
        cabin = canvas.flat(x - 0.85, z + 0.4, 1.7, 3, 0.9)
        canvas.box(cabin, canvas.flat(x - 0.62, z + 1, 1.24, 1.7, 1.5), color * 0.9, CAR)
        glass = canvas.flat(x - 0.8, z + 0.5, 1.6, 2.8, 0.95)
        canvas.box(glass, canvas.flat(x - 0.65, z + 0.9, 1.3, 1.8, 1.4), canvas.pick(GLASS), CAR)


def paint_bus(canvas: Canvas, x: float, z: float) -> None:
    """Paint a single or double decker, along the road or across it: a facade on wheels."""
    rng, x = canvas.rng, copysign(canvas.road / 2, x)
    color, decks = canvas.pick((PAINTS, STONES)[rng.integers(2)]), int(rng.integers(1, 3))
    width, length = (2.5, 10.0) if rng.random() < 0.65 else (10.0, 2.5)
    height = 1.2 + 1.5 * decks
    if z > 10 and canvas.take(x, z, length):
        faces = paint_body(canvas, x, z, width, height, length, color, BUS)
        for face, extent in zip(faces, (length, width), strict=True):
            paint_windows(canvas, part(face, 0.03, 0.8 / height, 0.97, 0.95), int(extent / 1.2), decks, BUS)


THINGS: dict[Callable[[Canvas, float, float], None], float] = {
    paint_car: 0.26,
    paint_bus: 0.07,
    paint_person: 0.22,
    paint_sign: 0.15,
    paint_lamp: 0.11,
    paint_tree: 0.13,
    paint_clutter: 0.06,
}
"""The relative frequency of each thing in the street."""


def paint_things(canvas: Canvas) -> None:
    """Paint things on the road and the pavements, from far to near: as many from 3 to 6 metres as from 30 to 60."""
    rng, things = canvas.rng, list(THINGS)
    count = rng.integers(12, 30)
    kinds = rng.choice(len(things), count, p=list(THINGS.values()))
    depths = np.sort(60 * 0.05 ** rng.random(count))[::-1]
    places = rng.uniform(canvas.road + 0.4, canvas.front - 0.4, count) * rng.choice((-1, 1), count)
    for kind, x, z in zip(kinds, places, depths, strict=True):
        things[kind](canvas, x, z)


def paint_bonnet(canvas: Canvas) -> None:
    """Paint the bonnet of the car that carries the camera."""
    height, width, _ = canvas.pixels.shape
    bow = (ROUND - (0.5, 0)) * canvas.rng.uniform((1, 0.15), (1.8, 0.25)) * height
    bow += (width / 2, 0.92 * height)
    canvas.fill(16 * bow, 0, canvas.pick(PAINTS), VOID)


@dataclass(frozen=True)
class StreetScene:
    """A street scene: seed, split and index determine its contents, height and width its resolution."""

    seed: int
    split: str
    index: int
    height: int
    width: int

    @property
    def name(self) -> str:
        """The sample's name: `train/000012`."""
        return f"{self.split}/{self.index:06d}"

    def image(self) -> Array:
        """Return the image: `(H, W, 3)` uint8 RGB."""
        return render(self)[0].copy()

    def mask(self) -> Array:
        """Return the mask: `(H, W)` uint8 class indices, `VOID` on the bonnet, around things and on clutter."""
        return render(self)[1].copy()


@lru_cache(maxsize=4)
def render(scene: StreetScene) -> tuple[Array, Array]:
    """Draw a scene's image and mask; the last ones are cached, because both are usually read in succession."""
    rng = np.random.default_rng([scene.seed, SPLITS.index(scene.split), scene.index])
    canvas = Canvas(scene.height, scene.width, rng)
    for paint in (paint_sky, paint_ground, paint_markings, paint_shadows, paint_frontage, paint_things):
        paint(canvas)
    if rng.random() < 0.7:
        paint_bonnet(canvas)
    return canvas.photograph(), canvas.annotate()


class Streets(SegmentationDataset):
    """Generated street scenes: 12 classes in the spirit of CamVid and Cityscapes, drawn on demand.

    Metrics on these scenes compare networks with each other, quickly and without a download; they do not transfer to
    real streets. The same arguments give the same scenes in every process, and the size affects only the resolution.

    Args:
        num_train: Number of scenes to train on.
        num_val: Number of scenes to validate on.
        num_test: Number of scenes to test on.
        height: Height of the images in pixels, at least 32.
        width: Width of the images in pixels, at least 32; twice the height is recommended.
        seed: Seed of the scenes, at least 0; another seed gives other streets in every split.

    Raises:
        CrosscoopError: A value is too small.
    """

    # fmt: off
    class_names = ("sky", "road", "marking", "pavement", "building", "wall",
                   "tree", "pole", "sign", "person", "car", "bus")
    palette = ((70, 130, 180), (128, 64, 128), (255, 255, 255), (244, 35, 232), (70, 70, 70), (190, 153, 120),
               (107, 142, 35), (200, 200, 110), (250, 170, 30), (220, 20, 60), (0, 0, 142), (0, 160, 170))
    # fmt: on
    train_split, val_split, test_split = SPLITS

    def __init__(
        self,
        num_train: int = 400,
        num_val: int = 100,
        num_test: int = 100,
        height: int = 128,
        width: int = 256,
        seed: int = 0,
    ) -> None:
        sizes = {"num_train": num_train, "num_val": num_val, "num_test": num_test}
        minimums = dict.fromkeys(sizes, 1) | {"height": 32, "width": 32, "seed": 0}
        for option, value in (sizes | {"height": height, "width": width, "seed": seed}).items():
            if value < minimums[option]:
                raise CrosscoopError(
                    f"data.dataset.{option}: got {value}, expected at least {minimums[option]}. Increase it, or leave "
                    "it out to use the default."
                )
        self.sizes = dict(zip(SPLITS, sizes.values(), strict=True))
        self.height, self.width, self.seed = height, width, seed

    def samples(self, split: str) -> Sequence[StreetScene]:
        """Return the scenes of a split; each is drawn only when its image or mask is read.

        Args:
            split: `train`, `val` or `test`.

        Raises:
            CrosscoopError: The split is unknown.
        """
        if split not in self.sizes:
            raise CrosscoopError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}. Choose one of these.")
        return [StreetScene(self.seed, split, index, self.height, self.width) for index in range(self.sizes[split])]
