"""Drawing of procedural street scenes: a pinhole camera above a straight street, painted from far to near."""

import numpy as np
import PIL.Image

from hf_segkd.data.specs import DatasetSpec

CLASSES = {
    "sky": (70, 130, 180),
    "building": (90, 70, 70),
    "road": (128, 64, 128),
    "pavement": (244, 35, 232),
    "tree": (60, 150, 40),
    "pole": (170, 170, 170),
    "sign": (230, 220, 0),
    "car": (0, 40, 160),
    "person": (220, 20, 60),
    "marking": (255, 255, 255),
}
SPEC = DatasetSpec(
    name="synthetic",
    labels=tuple(CLASSES),
    palette=tuple(CLASSES.values()),
    license="Scenes drawn by hf_segkd itself: nobody else has rights in them.",
)
SKY, BUILDING, ROAD, PAVEMENT, TREE, POLE, SIGN, CAR, PERSON, MARKING = range(SPEC.num_labels)
SPLITS = ("train", "validation", "test")
LEAVES = (0.2, 0.4, 0.15), (0.35, 0.45, 0.15), (0.15, 0.3, 0.2), (0.5, 0.35, 0.12)  # summer to autumn
PLASTER = (0.7, 0.6, 0.45), (0.6, 0.35, 0.3), (0.5, 0.55, 0.6), (0.75, 0.75, 0.7), (0.5, 0.55, 0.4)
PAINT = (0.9, 0.9, 0.9), (0.9, 0.8, 0.4)
SKIN, BARK = ((0.75, 0.55, 0.45), (0.4, 0.28, 0.2)), ((0.3, 0.22, 0.15), (0.2, 0.18, 0.16))
BRIGHT = (0.8, 0.1, 0.1), (0.1, 0.25, 0.75), (0.9, 0.75, 0.1), (0.85, 0.85, 0.85), (0.1, 0.5, 0.25)
FAR = 45.0  # depth of the end of the street, in camera heights (about 1.5 m), the unit of every length below


def draw_scene(split: str, index: int, height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw scene `index` of a split; splits share the distribution, never a scene.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: RGB image uint8 (H, W, 3) and train ids uint8 (H, W), 255 on some borders.
    """
    scene = _Scene(height, width, np.random.default_rng([seed, SPLITS.index(split), index]))
    scene.paint_sky()
    scene.paint_ground()
    scene.paint_facades()
    scene.paint_objects()
    return scene.photograph(), scene.annotation()


class _Scene:
    """A pinhole camera at height 1 above a straight street, painted from far to near."""

    def __init__(self, height: int, width: int, rng: np.random.Generator):
        self.rng, self.size = rng, (height, width)
        self.image = np.zeros((height, width, 3), dtype=np.float32)
        self.labels = np.zeros((height, width), dtype=np.uint8)
        self.y, self.x = np.mgrid[:height, :width].astype(np.float32)
        self.horizon, self.vanishing = rng.uniform(0.36, 0.52) * height, rng.uniform(0.32, 0.68) * width
        self.focal = rng.uniform(0.7, 0.95) * width
        self.left, self.right = -rng.uniform(1.3, 3.2), rng.uniform(1.2, 3.2)  # kerbs
        self.walls = self.left - rng.uniform(1.0, 3.5), self.right + rng.uniform(1.0, 3.5)
        self.gray = rng.uniform(0.3, 0.55)
        self.air = np.array([[0.55, 0.7, 0.9], [0.75, 0.76, 0.78], [0.85, 0.68, 0.5]][rng.integers(3)], np.float32)
        self.haze = float(rng.choice([0.005, 0.015, 0.04]))
        self.grain = 1 + rng.uniform(0.02, 0.1) * self._noise(2) + 0.06 * self._noise(12)

    def _tint(self, spread: float = 0.08) -> np.ndarray:
        """A gray near the scene's own, which road, pavement, buildings and cars draw from alike."""
        gray = self.gray + self.rng.normal(0, spread) + self.rng.normal(0, 0.02, 3)
        return gray.clip(0.08, 0.95).astype(np.float32)

    def _noise(self, cell: int) -> np.ndarray:
        """Smooth noise (H, W) of about unit size with features of `cell` pixels."""
        coarse = self.rng.standard_normal([length // cell + 2 for length in self.size], dtype=np.float32)
        return np.asarray(PIL.Image.fromarray(coarse).resize(self.size[::-1], PIL.Image.Resampling.BICUBIC))

    def _fill(self, mask, color, label: int, depth, region=np.s_[:, :]) -> None:
        """Paint `mask` of a region; haze draws distant colors towards that of the air."""
        mist = np.exp(np.asarray(-self.haze * depth, dtype=np.float32))[..., None]
        np.copyto(self.image[region], self.air + mist * (color - self.air), where=mask[..., None])
        self.labels[region][mask] = label

    def paint_sky(self) -> None:
        rng, (_, width) = self.rng, self.size
        top = self.air * rng.uniform(0.6, 1.1) * rng.uniform(0.9, 1.1, 3)
        clouds = np.clip(self._noise(16) + 0.4 * self._noise(6) - rng.uniform(0, 2), 0, 1)[..., None]
        self.image[:] = top + (self.air - top) * np.clip(self.y / self.horizon, 0, 1)[..., None] + clouds * 0.25
        skyline = np.repeat(rng.uniform(0, 0.16, width // 6 + 1) * self.size[0], 6)[:width]
        wooded = np.repeat(rng.random(width // 24 + 1) < 0.5, 24)[:width]
        far = (self.y > self.horizon - skyline) & (self.y <= self.horizon + 1)
        shade = 1 + 0.15 * self._noise(4)[..., None]
        self._fill(far & ~wooded, self._tint() * shade, BUILDING, FAR)
        self._fill(far & wooded, _pick(rng, LEAVES) * shade, TREE, FAR)

    def paint_ground(self) -> None:
        rng, below = self.rng, np.s_[int(self.horizon) + 1 :, :]
        depth = self.focal / (self.y[below][:, :1] - self.horizon + 0.5)
        lateral = (self.x[below] - self.vanishing) * depth / self.focal
        grain, everywhere = self.grain[below][..., None], np.ones(lateral.shape, dtype=bool)
        tiles = 1 - 0.15 * (((lateral * 2) % 1 < 0.12) | ((depth * 2) % 1 < 0.12)) * (depth < 6)
        self._fill(everywhere, self._tint() * grain * tiles[..., None], PAVEMENT, depth, below)
        kerb = (lateral > self.left - 0.15) & (lateral < self.right + 0.15)
        self._fill(kerb, self._tint(0.15), PAVEMENT, depth, below)
        road = (lateral > self.left) & (lateral < self.right)
        self._fill(road, self._tint() * (grain + 0.15 * (self._noise(9)[below] > 1.2)[..., None]), ROAD, depth, below)
        paint = self._lines(lateral, depth) & road & (depth < 25)
        self._fill(paint, _pick(rng, PAINT) * grain, MARKING, depth, below)
        edge, slope = rng.uniform(*self.walls), rng.uniform(-0.15, 0.15)
        shadow = (lateral + slope * depth + 0.1 * np.sin(depth * 3) > edge) ^ (rng.random() < 0.5)
        self.image[below][shadow] *= rng.uniform(0.5, 0.9)

    def _lines(self, lateral: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Painted lines: dashes between lanes, sometimes edge lines, sometimes a crossing."""
        rng = self.rng
        center, half = rng.uniform(0.35, 0.65) * (self.right - self.left) + self.left, rng.uniform(0.04, 0.09)
        lines = (np.abs(lateral - center) < half) & ((depth + rng.uniform(0, 3)) % 3 < rng.uniform(1, 3))
        if rng.random() < 0.5:
            lines |= (np.abs(lateral - self.left - 0.3) < half) | (np.abs(lateral - self.right + 0.3) < half)
        if rng.random() < 0.35:
            near = rng.uniform(2.5, 8)
            lines |= (depth > near) & (depth < near + 2) & (lateral % 0.7 < 0.35)
        return lines

    def paint_facades(self) -> None:
        """Two rows of houses of varying length, height, color and windows, with gaps."""
        for side, wall in zip((-1, 1), self.walls, strict=True):
            depth = np.abs(wall) * self.focal / np.maximum((self.x[:1] - self.vanishing) * side, 0.1)
            level = (self.horizon - self.y) * depth / self.focal  # height above the camera
            start = self.rng.uniform(0.5, 3.0)
            while start < FAR:
                length = self.rng.uniform(2, 9)
                columns = np.flatnonzero((depth > start) & (depth <= start + length))
                if len(columns) and self.rng.random() < 0.8:
                    part = np.s_[:, columns[0] : columns[-1] + 1]
                    self._paint_house(part, depth[part] - start, level[part], start)
                start += length + self.rng.choice([0, 0, 1.5])

    def _paint_house(self, region, along: np.ndarray, level: np.ndarray, start: float) -> None:
        rng = self.rng
        color = self._tint(0.12) if rng.random() < 0.6 else _pick(rng, PLASTER)
        across, up = (along / rng.uniform(0.6, 1.6)) % 1, (level / rng.uniform(0.8, 1.4)) % 1
        gap = rng.uniform(0.1, 0.3)
        windows = (np.abs(across - 0.5) < 0.5 - gap) & (np.abs(up - 0.5) < 0.4 - gap / 2)
        glass = self.air * rng.uniform(0.1, 1.0)
        shaded = np.where(windows[..., None], glass, color * self.grain[region][..., None])
        if rng.random() < 0.35:  # a billboard, as bright as a sign
            board = (np.abs(along - 1) < 0.5) & (np.abs(level - rng.uniform(0, 1.5)) < rng.uniform(0.2, 0.6))
            shaded = np.where(board[..., None], _pick(rng, BRIGHT), shaded)
        self._fill((level > -1) & (level < rng.uniform(0.8, 7)), shaded, BUILDING, along + start, region)

    def paint_objects(self) -> None:
        """Everything that stands on the ground, sorted by depth so that near things hide far ones."""
        rng, objects = self.rng, []
        for side, kerb, wall in ((-1, self.left, self.walls[0]), (1, self.right, self.walls[1])):
            parked, planted, lit = rng.random(3) < (0.5, 0.5, 0.7)
            for depth in np.arange(rng.uniform(2, 6), 30, rng.uniform(3, 6)):
                if parked and rng.random() < 0.6:
                    objects.append((depth + 1, kerb - side * 0.7, self._car))
                if planted and rng.random() < 0.7:
                    objects.append((depth, (kerb + wall) / 2 + side * rng.uniform(0, 1.5), self._tree))
                if lit and rng.random() < 0.7:
                    objects.append((depth + 0.3, kerb + side * rng.uniform(0.15, 0.5), self._pole))
            for _ in range(rng.poisson(2.5)):
                objects.append((rng.uniform(2.5, 14), rng.uniform(*sorted((kerb, wall))), self._person))
        for paint, mean in ((self._car, 1.5), (self._person, 0.6)):
            for _ in range(rng.poisson(mean)):
                objects.append((rng.uniform(3, 22), rng.uniform(self.left + 0.5, self.right - 0.5), paint))
        for depth, lateral, paint in sorted(objects, key=lambda item: -item[0]):
            paint(depth, lateral)

    def _box(self, depth: float, lateral: float, width: float, bottom: float, top: float):
        """Image region of an upright rectangle, with coordinates u (-1 to 1 across) and v (0 to 1 upwards) in it."""
        scale = self.focal / depth
        center, half = self.vanishing + lateral * scale, max(width * scale / 2, 0.6)
        low, high = self.horizon + (1 - bottom) * scale, self.horizon + (1 - top) * scale
        rows = slice(max(0, int(high)), max(0, int(low + 1)))
        columns = slice(max(0, int(center - half)), max(0, int(center + half + 1)))
        u, v = (self.x[0, columns] + 0.5 - center) / half, (low - self.y[rows, :1] - 0.5) / (low - high)
        return (rows, columns), *np.broadcast_arrays(u, v)

    def _car(self, depth: float, lateral: float) -> None:
        rng = self.rng
        van, sideways = rng.random(2) < 0.25
        region, u, v = self._box(depth, lateral, 3.2 if sideways else 1.4, -0.15, 0.15)
        self.image[region] *= np.where(u**2 + (2 * v - 1) ** 2 < 1, 0.55, 1)[..., None]
        height = rng.uniform(1.2, 1.7) if van else rng.uniform(0.8, 1.0)
        region, u, v = self._box(depth, lateral, 2.8 if sideways else 1.2, 0, height)
        reach = 1 - np.clip(2 * v - 1, 0, 1) * (0.08 if van else 0.45)
        body = (np.abs(u) < reach) & (v > 0.12) & (v < 1)
        wheels = (np.abs(np.abs(u) - 0.68) < (0.14 if sideways else 0.2)) & (v > 0) & (v < 0.25)
        paints = self._tint(0.2), self._tint(0.2), _pick(rng, BRIGHT), _pick(rng, LEAVES)
        color = paints[rng.integers(4)]
        shade = color * (0.75 + 0.35 * v[..., None])
        glass = (np.abs(u) < reach - 0.14) & (v > 0.55) & (v < 0.88)
        lights = (np.abs(u) > 0.68) & (np.abs(v - 0.42) < 0.08)
        shade[glass], shade[lights], shade[wheels] = 0.16, (0.8, 0.15, 0.1), 0.07
        self._fill(body | wheels, shade, CAR, depth, region)

    def _person(self, depth: float, lateral: float) -> None:
        rng = self.rng
        region, u, v = self._box(depth, lateral, rng.uniform(0.35, 0.5), 0, rng.uniform(0.85, 1.2))
        head = (u / 0.42) ** 2 + ((v - 0.9) / 0.1) ** 2 < 1
        torso = (np.abs(u) < 0.9 - 0.5 * np.abs(v - 0.65)) & (v > 0.42) & (v < 0.81)
        legs = (np.abs(np.abs(u) - rng.uniform(0.2, 0.4)) < 0.25) & (v > 0) & (v <= 0.42)
        shirt = self._tint(0.15) if rng.random() < 0.5 else _pick(rng, BRIGHT)
        shade = np.tile(shirt, (*u.shape, 1))
        shade[head], shade[legs] = _pick(rng, SKIN), rng.uniform(0.05, 0.4, 3)
        self._fill(head | torso | legs, shade, PERSON, depth, region)

    def _tree(self, depth: float, lateral: float) -> None:
        rng = self.rng
        bush = rng.random() < 0.2
        low, radius = (0.0, rng.uniform(0.3, 0.6)) if bush else rng.uniform((1.1, 0.7), (2.2, 1.5))
        region, _, v = self._box(depth, lateral, rng.uniform(0.12, 0.25), 0, low + radius)
        self._fill(v > 0, _pick(rng, BARK), TREE, depth, region)
        region, u, v = self._box(depth, lateral, 2.4 * radius, low, low + 2.2 * radius)
        leaves = np.zeros(u.shape, dtype=bool)
        for _ in range(6):
            across, up, size = rng.uniform(-0.5, 0.5), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.5)
            leaves |= ((u - across) / size) ** 2 + ((2 * v - 2 * up) / size) ** 2 < 1
        texture = rng.standard_normal(u.shape, dtype=np.float32)
        shade = _pick(rng, LEAVES) * (0.6 + 0.6 * v + 0.12 * texture)[..., None]
        self._fill(leaves & (texture < 2), shade, TREE, depth, region)

    def _pole(self, depth: float, lateral: float) -> None:
        rng = self.rng
        top, tone = rng.uniform(1.6, 3.6), self._tint(0.2)
        region, _, v = self._box(depth, lateral, rng.uniform(0.08, 0.18), 0, top)
        self._fill(v > 0, tone, POLE, depth, region)
        if rng.random() < 0.3:  # arm of a street lamp
            region, _, v = self._box(depth, lateral - 0.4 * np.sign(lateral), 0.8, top - 0.1, top)
            self._fill(v > -1, tone, POLE, depth, region)
        elif rng.random() < 0.7:
            size, middle = rng.uniform(0.4, 0.8), rng.uniform(1.4, top)
            region, u, v = self._box(depth, lateral, size, middle - size / 2, middle + size / 2)
            across, up = np.abs(u), np.abs(2 * v - 1)
            shapes = np.maximum(across, up), np.hypot(across, up), np.maximum(1.1 * across + v, 1 - v)
            radius = shapes[rng.integers(3)]
            shade = np.tile(_pick(rng, BRIGHT), (*u.shape, 1))
            shade[radius < 0.7] = rng.choice([0.1, 0.95])
            self._fill(radius < 1, shade, SIGN, depth, region)

    def photograph(self) -> np.ndarray:
        """The image as a camera gives it: exposure, color cast, blur, sensor noise; uint8 RGB."""
        rng, blur = self.rng, self.rng.uniform(0, 0.25)
        image = self.image * rng.uniform(0.6, 1.2) * rng.uniform(0.92, 1.08, 3).astype(np.float32)
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        padded = (1 - 2 * blur) * padded[1:-1] + blur * (padded[:-2] + padded[2:])
        image = (1 - 2 * blur) * padded[:, 1:-1] + blur * (padded[:, :-2] + padded[:, 2:])
        image += rng.uniform(0.005, 0.05) * rng.standard_normal(image.shape, dtype=np.float32)
        return (255 * np.clip(image, 0, 1)).astype(np.uint8)

    def annotation(self) -> np.ndarray:
        """Train ids, with a quarter of the pixels along class borders left unlabeled, as human annotators do."""
        down, across = (np.diff(self.labels, axis=axis, append=self.labels.take([-1], axis)) for axis in (0, 1))
        border = (down != 0) | (across != 0)
        return np.where(border & (self.rng.random(self.size) < 0.25), np.uint8(SPEC.ignore_index), self.labels)


def _pick(rng: np.random.Generator, colors: tuple) -> np.ndarray:
    return np.array(colors[rng.integers(len(colors))], dtype=np.float32) * rng.uniform(0.6, 1.2)
