"""Features of the picture and of the question: what is known before any part of the model has run.

Training and serving share this file, so a feature has one definition. Every value lies in [0, 1] and is finite for
every picture and every string. `FEATURES_VERSION` rises whenever a value changes its meaning: a controller trained on
other features is refused when it is loaded.

Pixel features (of the picture read with a stride that leaves at most 128 px a side, colours with twice that stride;
luminance y in [0, 1]; gradient = mean of the absolute steps to the right and down; cells of 8 x 8 px):

| name | meaning |
|---|---|
| mean_luma, contrast | mean of y; twice its standard deviation |
| dark_share, light_share | share of pixels with y below 0.1875, above 0.8125 |
| luma_entropy | entropy of the 32-bin histogram of y, 1 = uniform |
| colourfulness | Hasler and Suesstrunk (2003) on opponent colours, clipped at 1 |
| distinct_colours | log2(1 + used bins) / log2(513), 8 levels a channel |
| top_colour | share of the most frequent of these bins: the background of a drawn page |
| blobs | log2(1 + n) / 6, n = groups less holes of the cells that are mostly unlike that background |
| edge_density | share of pixels whose gradient exceeds 0.06 |
| gradient_fine, gradient_coarse | mean gradient of y, and of y averaged over 4 x 4 px |
| edge_direction | share of the horizontal difference in the gradient; 0.5 = isotropic or flat |
| flat_cells, active_cells | share of cells with mean gradient below 0.002, above 0.03 |
| centroid_x, centroid_y | centre of the gradient energy over the cells; 0.5 = centred or flat |
| spread | its root mean square distance from there, 1 = corner to corner |
| row_profile, column_profile | variation coefficient v of the gradient by row (column), as v / (1 + v): lines of text |
| row_alternation | share of neighbouring rows between which that profile crosses its mean |
| detail | sum of second differences along x over its largest possible value: thin strokes near 1, ramps near 0 |
| log_height, log_width | log2 of the whole picture's sides in px, / 16 |

Question features: logarithmic lengths, indicators of word classes, the class of the opening, then `BUCKETS` counts of
words hashed by CRC-32 (min(count, 3) / 3), so that a new template needs no new vocabulary. Only the first 2000
characters are read.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from functools import lru_cache

import numpy as np

FEATURES_VERSION = 1
MAX_SIDE = 128  # px that are read along a side, at most
CELL = 8  # px
BUCKETS = 24
MAX_CHARACTERS = 2000

PIXEL_FEATURES: tuple[str, ...] = (
    *("mean_luma", "contrast", "dark_share", "light_share", "luma_entropy"),
    *("colourfulness", "distinct_colours", "top_colour", "blobs"),
    *("edge_density", "gradient_fine", "gradient_coarse", "edge_direction"),
    *("flat_cells", "active_cells", "centroid_x", "centroid_y", "spread"),
    *("row_profile", "column_profile", "row_alternation", "detail"),
    *("log_height", "log_width"),
)

OPENINGS: dict[str, tuple[str, ...]] = {
    "how_many": ("how many", "count", "what number of", "what is the number of"),
    "what": ("what", "whats", "name", "tell"),
    "which": ("which",),
    "yes_no": ("is", "are", "does", "do", "did", "was", "were", "has", "have", "can", "could", "will"),
    "where_who": ("where", "who", "whose", "when", "why", "how"),
    "read": ("read", "transcribe", "spell", "write", "copy"),
}
"""Class of a question by its first words; the first class that fits counts."""

WORDS: dict[str, frozenset[str]] = {
    "colour": frozenset(
        "color colour colors colours coloured colored hue shade red green blue yellow orange purple violet pink "
        "brown black white gray grey cyan magenta teal gold golden silver beige".split()
    ),
    "shape": frozenset(
        "shape shapes circle circles square squares triangle triangles rectangle rectangles star stars ring rings "
        "cross crosses diamond diamonds hexagon hexagons pentagon pentagons ellipse oval cube cubes sphere "
        "spheres disc".split()
    ),
    "relation": frozenset(
        "left right above below under over beneath between behind beside next near inside outside top bottom "
        "corner middle centre center".split()
    ),
    "comparison": frozenset(
        "more most less least fewer fewest than larger largest bigger biggest smaller smallest higher highest "
        "lower lowest taller tallest longest shortest maximum minimum same equal difference".split()
    ),
    "reading": frozenset(
        "word words text letter letters digit digits written printed says say read title label line lines heading "
        "name code page sign plate caption spelled".split()
    ),
    "record": frozenset(
        "total price cost amount date invoice receipt table row rows column columns cell value values bar bars "
        "chart graph plot axis percent percentage sum number".split()
    ),
}
"""Word classes; an indicator is 1 when any word of the question is in the class."""

QUESTION_FEATURES: tuple[str, ...] = (
    *("log_words", "log_characters", "has_digit", "has_quote", "has_name"),
    *(f"opens_{name}" for name in OPENINGS),
    *(f"says_{name}" for name in WORDS),
    *(f"bucket_{i}" for i in range(BUCKETS)),
)

_LUMA = np.asarray([0.299, 0.587, 0.114], np.float32) / np.float32(255)
_PLACES = np.asarray([64, 8, 1], np.float32)
_OPPONENTS = np.asarray([[1, -1, 0], [0.5, 0.5, -1]], np.float32)
_add = np.add.reduce  # without the checks of np.sum, which would cost as much as these small sums
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_QUOTED = re.compile(r"[\"“”«»]|(?<!\w)['‘`][^'’`]+['’`](?!\w)")
_APOSTROPHES = str.maketrans("", "", "'’")


def pixel_features(image: np.ndarray) -> np.ndarray:
    """Statistics of one picture, in the order of `PIXEL_FEATURES`.

    Args:
        image: (H, W, 3) uint8, sRGB, at least 1 x 1 px.

    Returns:
        (24,) float32 in [0, 1].

    Raises:
        ValueError: not a uint8 array of that shape.
    """
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image: expected a uint8 array (H, W, 3), got {kind}")
    height, width = image.shape[:2]
    if height == 0 or width == 0:
        raise ValueError(f"image: no pixels, shape {image.shape}")
    image = np.ascontiguousarray(_sampled(image))  # or sums of another layout would end in other last bits
    luma = image.astype(np.float32) @ _LUMA
    first = float(luma[0, 0])
    luma -= first  # a constant picture is exactly 0 then, whatever the order of sums
    values = [
        *_tones(luma, first),
        *_colours(image[::2, ::2]),
        *_structure(luma),
        math.log2(height) / 16,
        math.log2(width) / 16,
    ]
    return np.clip(np.asarray(values, np.float32), 0.0, 1.0)


def question_features(question: str) -> np.ndarray:
    """Statistics of one question, in the order of `QUESTION_FEATURES`.

    Args:
        question: any text, empty included.

    Returns:
        (41,) float32 in [0, 1].

    Raises:
        ValueError: not a string.
    """
    if not isinstance(question, str):
        raise ValueError(f"question: expected a string, got {type(question).__name__}")
    text = unicodedata.normalize("NFKC", question[:MAX_CHARACTERS])
    spelled = _WORD.findall(text)
    words = [word.translate(_APOSTROPHES).casefold() for word in spelled]
    opening = " ".join(words[:5]) + " "
    opens = next((k for k, starts in OPENINGS.items() if any(opening.startswith(f"{s} ") for s in starts)), None)
    present = set(words)
    buckets = np.zeros(BUCKETS, np.float32)
    for word in words:
        buckets[zlib.crc32(word.encode("utf-8", "surrogatepass")) % BUCKETS] += 1.0
    values = [
        math.log2(1 + len(words)) / 8,
        math.log2(1 + len(text)) / 11,
        any(c.isdigit() for c in text),
        _QUOTED.search(text) is not None,
        any(word[0].isupper() for word in spelled[1:]),
        *(k == opens for k in OPENINGS),
        *(not present.isdisjoint(group) for group in WORDS.values()),
        *(np.minimum(buckets, 3) / 3),
    ]
    return np.clip(np.asarray(values, np.float32), 0.0, 1.0)


def _sampled(image: np.ndarray) -> np.ndarray:
    """Every k-th pixel of both axes (one k: the aspect stays), edges repeated where a side is shorter than a cell."""
    step = -(-max(image.shape[:2]) // MAX_SIDE)
    image = image[::step, ::step]
    missing = [max(0, CELL - side) for side in image.shape[:2]]
    return np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="edge") if any(missing) else image


def _tones(luma: np.ndarray, first: float) -> tuple[float, ...]:
    """Light and dark: mean_luma .. luma_entropy, of luma less its first value."""
    luma = luma.ravel()
    levels = (luma + np.float32(first)) * np.float32(31.999)
    shares = [count / luma.size for count in np.bincount(levels.astype(np.int32), minlength=32).tolist()]
    mean = float(_add(luma)) / luma.size
    deviation = math.sqrt(max(float(luma @ luma) / luma.size - mean**2, 0.0))
    entropy = -sum(share * math.log(share) for share in shares if share)
    return first + mean, 2 * deviation, sum(shares[:6]), sum(shares[26:]), entropy / math.log(32)


def _colours(image: np.ndarray) -> tuple[float, ...]:
    """Opponent colours, a histogram of 8 levels a channel and what differs from its top: colourfulness .. blobs."""
    planes = image.transpose(2, 0, 1).astype(np.float32, order="C").reshape(3, -1)
    code = (_PLACES @ np.floor(planes * np.float32(1 / 32))).astype(np.int32)
    bins = np.bincount(code, minlength=512)
    top = int(bins.argmax())
    size, most = code.size, int(bins[top])
    first = planes[:, :1].copy()
    planes -= first  # as with luma
    away = planes - (planes @ (code == top).astype(np.float32) / np.float32(most))[:, None]
    unlike = (_add(np.abs(away, out=away)) > np.float32(0.3 * 255)).astype(np.float32).reshape(image.shape[:2])
    opponents = _OPPONENTS @ planes
    return (
        _colourfulness(opponents, (_OPPONENTS @ first).ravel().tolist()),
        math.log2(1 + np.count_nonzero(bins)) / math.log2(513),
        most / size,
        math.log2(1 + _groups(_cells(unlike, CELL // 2) > 0.3)) / 6,
    )


def _colourfulness(opponents: np.ndarray, first: list[float]) -> float:
    """Joint deviation plus 0.3 times the joint mean of opponent colours (2, n), 0 .. 255, given less their first."""
    size = opponents.shape[1]
    means = [total / size for total in _add(opponents, axis=1).tolist()]
    squares = [square / size for square in np.vecdot(opponents, opponents).tolist()]
    variance = sum(square - mean**2 for square, mean in zip(squares, means, strict=True))
    mean = math.hypot(*(away + mean for away, mean in zip(first, means, strict=True)))
    return (math.sqrt(max(variance, 0.0)) + 0.3 * mean) / 255


def _structure(luma: np.ndarray) -> tuple[float, ...]:
    """Edges and where they are: edge_density .. detail; the same whatever is added to luma."""
    height, width = luma.shape
    step, down = luma[:, 1:] - luma[:, :-1], luma[1:] - luma[:-1]
    second = _total(step[:, 1:] - step[:, :-1])
    twice = np.zeros_like(luma)  # the gradient, not yet halved
    np.abs(step, out=twice[:, :-1])
    sideways = float(_add(twice, axis=None))
    twice[:-1] += np.abs(down, out=down)
    rows, columns = _add(twice, axis=1) / (2 * width), _add(twice, axis=0) / (2 * height)
    mean = float(_add(rows)) / height
    coarse, cells = _cells(luma, CELL // 2), _cells(twice, CELL)
    coarse_steps = (coarse[:, 1:] - coarse[:, :-1], coarse[1:] - coarse[:-1])
    return (
        np.count_nonzero(twice > 0.12) / twice.size,
        mean,
        sum(_total(steps) / steps.size for steps in coarse_steps) / 2,
        sideways / (2 * mean * twice.size) if mean > 1e-6 else 0.5,
        np.count_nonzero(cells < 0.004) / cells.size,
        np.count_nonzero(cells > 0.06) / cells.size,
        *_centre(cells),
        *_profiles(rows, columns, mean),
        second / (2 * sideways) if sideways > 1e-6 else 0.0,
    )


def _total(steps: np.ndarray) -> float:
    """Sum of the absolute values, which are written over the steps."""
    return float(_add(np.abs(steps, out=steps), axis=None))


def _cells(values: np.ndarray, side: int) -> np.ndarray:
    """Means over side x side values; a remainder at the right and lower edge is left out."""
    height, width = values.shape
    return _pool(height, side) @ values @ _pool(width, side).T


@lru_cache(maxsize=64)
def _pool(length: int, side: int) -> np.ndarray:
    """(length // side, length) float32: takes means over `side` values."""
    return (
        np.eye(length // side, dtype=np.float32).repeat(side, axis=1)
        @ np.eye(length // side * side, length, dtype=np.float32)
        / side
    )


def _groups(cells: np.ndarray) -> int:
    """Groups of 8-connected cells less their holes, at least 0: the Euler number, from 2 x 2 patterns."""
    framed = np.zeros((cells.shape[0] + 2, cells.shape[1] + 2), np.intp)
    framed[1:-1, 1:-1] = cells
    pairs = framed[:, :-1] + 2 * framed[:, 1:]
    seen = np.bincount((pairs[:-1] + 4 * pairs[1:]).ravel(), minlength=16).tolist()
    one, three = seen[1] + seen[2] + seen[4] + seen[8], seen[7] + seen[11] + seen[13] + seen[14]
    return max(0, (one - three - 2 * (seen[6] + seen[9])) // 4)


def _centre(cells: np.ndarray) -> tuple[float, float, float]:
    """centroid_x, centroid_y, spread of the gradient over the cells."""
    total = float(_add(cells, axis=None))
    if total <= 2e-6:
        return 0.5, 0.5, 0.0
    y, x, yy, xx = (cells.ravel() @ _places(*cells.shape) / total).tolist()
    return x, y, math.sqrt(max(2 * (xx - x**2 + yy - y**2), 0.0))


@lru_cache(maxsize=64)
def _places(height: int, width: int) -> np.ndarray:
    """(height * width, 4) float64: row and column of each cell's middle as parts of the picture, and both squared."""
    y, x = np.indices((height, width)).reshape(2, -1)
    y, x = (y + 0.5) / height, (x + 0.5) / width
    return np.stack([y, x, y**2, x**2], axis=1)


def _profiles(rows: np.ndarray, columns: np.ndarray, mean: float) -> tuple[float, float, float]:
    """row_profile, column_profile, row_alternation."""
    if mean <= 1e-6:
        return 0.0, 0.0, 0.0
    variation = []
    for profile in (rows, columns):
        apart = profile - np.float32(mean)
        variation.append(math.sqrt(float(apart @ apart) / apart.size) / mean)
    above = rows > mean
    return *(v / (1 + v) for v in variation), np.count_nonzero(above[1:] != above[:-1]) / (above.size - 1)
