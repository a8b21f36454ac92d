"""An endless, seeded stream of flat landscapes with captions, drawn in batches by torch on any device.

What a picture shows is chosen on the CPU from a seed, so that every device draws the same stream; `draw` turns the
choices into pixels with soft-edged distance fields; `classify` reads choices back from pixels.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 192
TIMES = ("dawn", "day", "dusk", "night")
WEATHERS = ("clear", "clouds", "rain", "snow", "fog")
GROUNDS = ("sea", "hills", "desert", "snow")
OBJECTS = ("lighthouse", "house", "trees", "boat", "none")
COLOURS = ("red", "white", "blue", "yellow", "green")
CHOICES = (len(TIMES), len(WEATHERS), len(GROUNDS), len(OBJECTS), len(COLOURS), 2)
"""How many values each field of `Scenes` has, and so each column that `describe` reads."""

TIME_WORDS = (
    ("at dawn", "dawn", "at sunrise", "early morning"),
    ("at noon", "day", "by day", "midday", "daytime", "a bright day"),
    ("at dusk", "dusk", "at sunset", "in the evening"),
    ("at night", "night", "by night", "midnight", "dark sky with stars"),
)
WEATHER_WORDS = (
    ("clear sky", "clear", "no clouds"),
    ("clouds", "cloudy", "cloudy sky", "with clouds"),
    ("rain", "rainy", "in the rain", "raining"),
    ("snowfall", "snowing", "falling snow"),
    ("fog", "foggy", "mist", "in the fog"),
)
GROUND_WORDS = (
    ("sea", "calm sea", "by the sea", "ocean", "on the water"),
    ("hills", "green hills", "on the hills", "meadow", "hilly landscape"),
    ("desert", "sand dunes", "in the desert", "dunes"),
    ("snow field", "snowy ground", "winter landscape", "white snow"),
)
OBJECT_WORDS = (
    ("lighthouse", "lighthouse tower"),
    ("house", "cottage", "small house"),
    ("trees", "some trees", "forest"),
    ("boat", "sailing boat", "sailboat", "ship"),
    ("nothing else", "empty landscape", "landscape"),
)
FILLERS = ("a picture of", "a painting of", "flat style", "a landscape with", "simple illustration")

SKY_TOP = ((0.42, 0.52, 0.80), (0.22, 0.55, 0.93), (0.29, 0.18, 0.42), (0.03, 0.05, 0.15))
SKY_LOW = ((1.00, 0.82, 0.66), (0.72, 0.88, 0.98), (0.97, 0.47, 0.25), (0.10, 0.14, 0.32))
LIGHT = ((0.88, 0.82, 0.84), (1.0, 1.0, 1.0), (0.80, 0.62, 0.60), (0.34, 0.38, 0.55))
GROUND_COLOURS = ((0.16, 0.45, 0.66), (0.35, 0.62, 0.28), (0.90, 0.72, 0.42), (0.94, 0.96, 1.00))
PAINTS = ((0.85, 0.15, 0.13), (0.97, 0.97, 0.95), (0.16, 0.32, 0.82), (0.98, 0.83, 0.16), (0.18, 0.58, 0.25))


@dataclass
class Scenes:
    """What a batch of pictures shows: index tensors of shape (batch,) into the tuples above, and free numbers."""

    time: Tensor
    weather: Tensor
    ground: Tensor
    thing: Tensor
    colour: Tensor
    body: Tensor
    """1 where the sun or the moon is in the sky."""
    free: Tensor
    """(batch, 32), uniform in [0, 1): places and sizes."""
    captions: list[str]
    fall: Tensor | None = None
    """(batch,): how far the rain has fallen, in distances from drop to drop; None for not at all."""


def choose(batch: int, seed: int) -> Scenes:
    """Choose what `batch` pictures show; the same for the same seed on every machine."""
    generator = torch.Generator().manual_seed(seed)

    def pick(count: int) -> Tensor:
        return torch.randint(count, (batch,), generator=generator)

    time, weather, ground, thing, colour = (pick(n) for n in (4, 5, 4, 5, 5))
    thing = torch.where((thing == 3) & (ground != 0), torch.full_like(thing, 1), thing)
    # Nor do houses and trees stand in the sea: there they are boats and lighthouses.
    thing = torch.where((ground == 0) & (thing == 1), 3, torch.where((ground == 0) & (thing == 2), 0, thing))
    body = (weather < 2).long() * (pick(4) > 0).long()
    free = torch.rand(batch, 32, generator=generator)
    shown = torch.stack((time, weather, ground, thing, colour, body), 1)
    return Scenes(time, weather, ground, thing, colour, body, free, describe(shown, seed))


def describe(shown: Tensor, seed: int) -> list[str]:
    """Word a caption for each row of (batch, 6) choices, in the order of the fields of `Scenes`."""
    words = random.Random(seed)  # noqa: S311
    return [_caption(words, *row) for row in shown.tolist()]


def _caption(rng: random.Random, time: int, weather: int, ground: int, thing: int, colour: int, body: int) -> str:
    parts = []
    if thing < 4 or rng.random() < 0.4:
        name = rng.choice(OBJECT_WORDS[thing])
        if thing < 4 and rng.random() < 0.8:
            name = f"{COLOURS[colour]} {name}"
        parts.append(rng.choice(("a ", "the ", "one ", "")) + name if thing not in (2, 4) else name)
    for words, index, drop in ((TIME_WORDS, time, 0.1), (WEATHER_WORDS, weather, 0.25), (GROUND_WORDS, ground, 0.1)):
        if rng.random() > drop:
            parts.append(rng.choice(words[index]))
    if body and rng.random() < 0.7:
        parts.append(rng.choice(("moon", "the moon", "full moon") if time == 3 else ("sun", "the sun", "low sun")))
    if not parts:
        return TIME_WORDS[time][0]
    rng.shuffle(parts)
    if rng.random() < 0.2:
        parts.insert(0, rng.choice(FILLERS))
    return rng.choice((", ", ", ", " ", " and ")).join(parts)


def draw(
    scenes: Scenes, device: torch.device | str = "cpu", size: int = SIZE, window: tuple[int, int, int] | None = None
) -> Tensor:
    """Draw a batch: float32 of shape (batch, 3, size, size), in [-1, 1].

    Args:
        window: (top, left, side) in pixels of a square part, which alone is drawn then.
    """
    free = scenes.free.to(device)[:, :, None, None]
    time, weather, ground, thing, colour, body = (
        index.to(device)
        for index in (scenes.time, scenes.weather, scenes.ground, scenes.thing, scenes.colour, scenes.body)
    )
    line = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
    top_row, left, side = window or (0, 0, size)
    y, x = line[None, top_row : top_row + side, None], line[None, None, left : left + side]

    def table(rows: tuple, index: Tensor) -> Tensor:
        return torch.tensor(rows, device=device)[index][:, :, None, None]

    def flag(mask: Tensor) -> Tensor:
        return mask.float()[:, None, None]

    def cover(distance: Tensor, soft: float = 2.0) -> Tensor:
        return (0.5 - distance * (size / soft)).clamp(0, 1)

    def paint(canvas: Tensor, tint: Tensor, mask: Tensor) -> Tensor:
        return torch.lerp(canvas, tint.expand_as(canvas), mask[:, None])

    def box(cx: Tensor, cy: Tensor, half_width: Tensor | float, half_height: Tensor | float) -> Tensor:
        return torch.maximum((x - cx).abs() - half_width, (y - cy).abs() - half_height)

    def solid(red: float, green: float, blue: float) -> Tensor:
        return torch.tensor((red, green, blue), device=device)[None, :, None, None]

    def at(index: int) -> Tensor:
        return free[:, index]

    light = table(LIGHT, time)
    horizon = 0.56 + 0.10 * at(0)
    depth = (y / horizon).clamp(0, 1)[:, None]
    low, top = table(SKY_LOW, time), table(SKY_TOP, time)
    grey = (weather >= 2).float()[:, None, None, None]
    dull = light * 0.62
    canvas = torch.lerp(torch.lerp(top, dull, grey * 0.45), torch.lerp(low, dull, grey * 0.45), depth)
    canvas = canvas.expand(-1, 3, side, side)

    night = flag(time == 3)
    # Stars lie on a grid of cells, one to each, moved by a fixed pattern that a free number shifts.
    cell_x, cell_y = torch.floor(x * 12 + 5 * at(1)), torch.floor(y * 12)
    hashed = torch.frac((cell_x * 12.9898 + cell_y * 78.233 + 3.0).sin() * 437.5453).abs()
    away = ((torch.frac(x * 12 + 5 * at(1)) - 0.3 - 0.4 * hashed) ** 2 + (torch.frac(y * 12) - 0.5) ** 2).sqrt() / 12
    canvas = paint(canvas, solid(1.0, 1.0, 0.9), cover(away - 0.006) * night * (hashed > 0.45) * flag(weather < 2))

    sun_y = torch.where((time == 1)[:, None, None], 0.14 + 0.10 * at(3), horizon - 0.10 - 0.12 * at(3))
    sun_y = torch.where((time == 3)[:, None, None], 0.14 + 0.12 * at(3), sun_y)
    disc = ((x - 0.15 - 0.7 * at(2)) ** 2 + (y - sun_y) ** 2).sqrt() - 0.055 - 0.03 * at(4)
    suns = ((1.0, 0.88, 0.55), (1.0, 0.93, 0.35), (1.0, 0.72, 0.25), (0.95, 0.95, 0.88))
    halo = (1 - disc / 0.10).clamp(0, 1) ** 2 * 0.35
    canvas = paint(canvas, table(suns, time), torch.maximum(cover(disc), halo) * flag(body))

    cloudy = flag((weather >= 1) & (weather <= 3))
    cloud = torch.lerp(light, solid(0.55, 0.57, 0.62) * light, grey)
    for k in range(3):
        cx, cy = at(5 + k) * 1.1 - 0.05, 0.10 + 0.26 * at(8 + k)
        shape = box(cx, cy + 0.025, 0.085, 0.001) - 0.022
        for dx, dy, radius in ((-0.05, 0.0, 0.035), (0.01, -0.02, 0.05), (0.06, 0.004, 0.034)):
            shape = torch.minimum(shape, ((x - cx - dx) ** 2 + (y - cy - dy) ** 2).sqrt() - radius)
        canvas = paint(canvas, cloud, cover(shape) * cloudy)

    base = table(GROUND_COLOURS, ground) * light
    wave = torch.where(
        (ground == 0)[:, None, None],
        0.0 * x,
        0.035 * torch.sin(6.2832 * (x * (1.0 + 0.8 * at(11)) + at(12)))
        + 0.015 * torch.sin(6.2832 * (x * 2.7 + at(13))),
    )
    edge = horizon + wave
    canvas = paint(canvas, base * 0.85, cover(edge - y))
    near = horizon + 0.13 + 0.05 * torch.sin(6.2832 * (x * (0.7 + 0.5 * at(14)) + at(15)))
    canvas = paint(canvas, base, cover(near - y) * flag(ground != 0))
    ripple = (y - horizon - 0.03).clamp(min=0)
    stripe = torch.sin(60 * ripple.sqrt() + 2 * torch.sin(9 * x + 6.2832 * at(16)))
    canvas = paint(canvas, base * 1.35 + 0.03, ((stripe - 0.6) * 2).clamp(0, 0.6) * flag(ground == 0) * cover(edge - y))

    canvas = _things(canvas, locals(), table(PAINTS, colour) * light)

    slant = torch.frac((x + 0.25 * y) * 14 + at(29)) - 0.5
    column = torch.floor((x + 0.25 * y) * 14 + at(29))
    fallen = 0.0 if scenes.fall is None else scenes.fall.to(device)[:, None, None]
    drop = (y * 5 + torch.frac((column * 12.9898).sin() * 43.7).abs() * 5 - fallen).remainder(1) < 0.45
    canvas = paint(canvas, light * 0.85 + 0.1, cover(slant.abs() / 14 - 0.004) * drop * 0.6 * flag(weather == 2))
    sx, sy = x * 9 + at(30), y * 9 + at(31)
    shift = torch.frac((torch.floor(sx) * 12.9898 + torch.floor(sy) * 78.233).sin() * 437.5).abs()
    flake = ((torch.frac(sx) - 0.25 - 0.5 * shift) ** 2 + (torch.frac(sy) - 0.3 - 0.4 * shift) ** 2).sqrt() / 9
    canvas = paint(canvas, light * 0.4 + 0.6, cover(flake - 0.014) * flag(weather == 3))
    veil = 0.72 * (1 - ((y - horizon).abs() / 0.55)).clamp(0.25, 1) * flag(weather == 4)
    canvas = paint(canvas, light * 0.80, veil.expand(-1, side, side))
    return canvas.clamp(0, 1) * 2 - 1


def _things(canvas: Tensor, tools: dict, tint: Tensor) -> Tensor:
    """Draw the object of each picture, with the helpers of `draw`."""
    x, y, thing, light = (tools[name] for name in ("x", "y", "thing", "light"))
    paint, cover, flag, at, solid = (tools[name] for name in ("paint", "cover", "flag", "at", "solid"))
    foot, cx, scale = tools["horizon"] + 0.10 + 0.08 * at(17), 0.22 + 0.56 * at(18), 0.85 + 0.4 * at(19)

    u, v = (x - cx) / scale, (y - foot) / scale  # v is 0 at the foot and negative above it

    def put(canvas: Tensor, colour: Tensor, distance: Tensor, kind: int) -> Tensor:
        return paint(canvas, colour, cover(distance * scale) * flag(thing == kind))

    def slab(left: float, right: float, top: float, bottom: float) -> Tensor:
        across, along = (u - (left + right) / 2).abs() - (right - left) / 2, (v - (top + bottom) / 2).abs()
        return torch.maximum(across, along - (bottom - top) / 2)

    dark, lamp = solid(0.20, 0.20, 0.24) * light, solid(1.0, 0.93, 0.45)
    # lighthouse: a tower that narrows, in stripes, on a rock
    rock = torch.maximum((u / 0.11) ** 2 + ((v - 0.03) / 0.05) ** 2 - 1, v - 0.03) * 0.05
    canvas = put(canvas, solid(0.38, 0.36, 0.36) * light, rock, 0)
    tower = torch.maximum(u.abs() - 0.042 - 0.06 * (v + 0.32), (v + 0.16).abs() - 0.16)
    canvas = put(canvas, tint, tower, 0)
    bands = torch.maximum(tower, 0.028 - (torch.frac((v + 0.32) / 0.112) * 0.112 - 0.056).abs())
    pale = torch.where((tools["colour"] == 1)[:, None, None, None], solid(0.5, 0.5, 0.55), solid(0.97, 0.97, 0.95))
    canvas = put(canvas, pale * light, bands, 0)
    canvas = put(canvas, lamp.expand_as(light), slab(-0.025, 0.025, -0.37, -0.32), 0)
    canvas = put(canvas, dark, torch.maximum(u.abs() - 0.9 * (v + 0.41), v + 0.368), 0)
    canvas = put(canvas, dark, slab(-0.05, 0.05, -0.328, -0.316), 0)
    # house: walls of the colour, a dark roof, door and lit windows
    canvas = put(canvas, tint, slab(-0.12, 0.12, -0.13, 0.02), 1)
    roof = torch.maximum((u.abs() - 1.5 * (v + 0.23)) * 0.6, v + 0.125)
    canvas = put(canvas, solid(0.36, 0.22, 0.18) * light, roof, 1)
    canvas = put(canvas, dark, slab(-0.02, 0.02, -0.07, 0.02), 1)
    for left in (-0.09, 0.05):
        canvas = put(canvas, lamp.expand_as(light), slab(left, left + 0.04, -0.09, -0.05), 1)
    # trees: three trunks with round crowns
    for k, offset in enumerate((-0.14, 0.0, 0.15)):
        high = 0.12 + 0.06 * at(20 + k)
        trunk = torch.maximum((u - offset).abs() - 0.012, (v + high / 2).abs() - high / 2)
        canvas = put(canvas, solid(0.35, 0.24, 0.16) * light, trunk, 2)
        crown = ((u - offset) ** 2 + (v + high + 0.03) ** 2).sqrt() - 0.065
        canvas = put(canvas, tint, crown, 2)
    # boat: a dark hull, a sail of the colour
    hull = torch.maximum(torch.maximum(u.abs() - 0.12 + 0.7 * v, -v), v - 0.045)
    canvas = put(canvas, solid(0.42, 0.24, 0.15) * light, hull, 3)
    canvas = put(canvas, dark, slab(-0.005, 0.005, -0.24, 0.0), 3)
    sail = torch.maximum(torch.maximum(0.01 - u, v + 0.02), (u - 0.11 - 0.5 * (v + 0.02)) * 0.85)
    return put(canvas, tint, sail, 3)


def classify(pictures: Tensor) -> list[str]:
    """Tell the time of day, one of `TIMES`, by the sky of (batch, 3, height, width) pictures in [-1, 1].

    The nearest of the palettes of all times and skies, clear or grey or foggy, decides.
    """
    height = pictures.shape[2]
    rows = ((pictures.float().cpu() + 1) / 2)[:, :, : height // 2]
    seen = torch.cat([rows[:, :, : height // 12].flatten(2).median(-1)[0], rows[:, :, -4:].flatten(2).median(-1)[0]], 1)
    names, palettes = [], []
    for index, name in enumerate(TIMES):
        top, low, light = (torch.tensor(colours[index]) for colours in (SKY_TOP, SKY_LOW, LIGHT))
        low = torch.lerp(top, low, 0.82)
        for grey, fog in ((0.0, 0.0), (0.45, 0.0), (0.45, 1.0)):
            clear = [torch.lerp(tone, light * 0.62, grey) for tone in (top, low)]
            veiled = [torch.lerp(tone, light * 0.80, fog * much) for tone, much in zip(clear, (0.18, 0.6), strict=True)]
            names.append(name)
            palettes.append(torch.cat(veiled))
    nearest = torch.cdist(seen, torch.stack(palettes)).argmin(1)
    return [names[index] for index in nearest.tolist()]
