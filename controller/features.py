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
_OPPONENTS = np.asarray([[1, 0.5], [-1, 0.5], [0, -1]], np.float32)
_PLACES = np.asarray([64, 8, 1], np.float32)
_ONES = np.ones(3, np.float32)
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
    image = _sampled(image)
    luma = image.astype(np.float32) @ _LUMA
    values = [
        *_tones(luma),
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


def _tones(luma: np.ndarray) -> tuple[float, ...]:
    """Light and dark: mean_luma .. luma_entropy."""
    bins = np.bincount((luma.ravel() * 31.999).astype(np.intp), minlength=32) / luma.size
    mean, deviation = _moments(luma.ravel())
    return mean, 2 * deviation, bins[:6].sum(), bins[26:].sum(), _entropy(bins) / math.log(32)


def _colours(image: np.ndarray) -> tuple[float, ...]:
    """Opponent colours, a histogram of 8 levels a channel and what differs from its top: colourfulness .. blobs."""
    pixels = image.reshape(-1, 3)
    colour = pixels.astype(np.float32) / 255
    moments = [_moments(opponent) for opponent in (colour @ _OPPONENTS).T]
    (mean_a, deviation_a), (mean_b, deviation_b) = moments
    code = ((pixels >> 5).astype(np.float32) @ _PLACES).astype(np.intp)
    bins = np.bincount(code, minlength=512)
    top = int(bins.argmax())
    distance = np.abs(colour - colour[code == top].mean(axis=0)) @ _ONES
    unlike = (distance > 0.3).astype(np.float32).reshape(image.shape[:2])
    return (
        math.hypot(deviation_a, deviation_b) + 0.3 * math.hypot(mean_a, mean_b),
        math.log2(1 + np.count_nonzero(bins)) / math.log2(513),
        int(bins[top]) / code.size,
        math.log2(1 + _groups(_cells(unlike, CELL // 2) > 0.3)) / 6,
    )


def _structure(luma: np.ndarray) -> tuple[float, ...]:
    """Edges and where they are: edge_density .. detail."""
    across, down = np.zeros_like(luma), np.zeros_like(luma)
    step = luma[:, 1:] - luma[:, :-1]
    np.abs(step, out=across[:, :-1])
    np.abs(luma[1:] - luma[:-1], out=down[:-1])
    gradient = (across + down) / 2
    rows, columns = gradient.sum(axis=1) / gradient.shape[1], gradient.sum(axis=0) / gradient.shape[0]
    mean, sideways = float(rows.sum()) / rows.size, float(across.sum())
    coarse = _cells(luma, CELL // 2)
    coarse_steps = (coarse[:, 1:] - coarse[:, :-1], coarse[1:] - coarse[:-1])
    cells = _cells(gradient, CELL)
    second = float(np.abs(step[:, 1:] - step[:, :-1]).sum())
    return (
        np.count_nonzero(gradient > 0.06) / gradient.size,
        mean,
        sum(float(np.abs(steps).sum()) / steps.size for steps in coarse_steps) / 2,
        sideways / (2 * mean * gradient.size) if mean > 1e-6 else 0.5,
        np.count_nonzero(cells < 0.002) / cells.size,
        np.count_nonzero(cells > 0.03) / cells.size,
        *_centre(cells),
        *_profiles(rows, columns, mean),
        second / (2 * sideways) if sideways > 1e-6 else 0.0,
    )


def _cells(values: np.ndarray, side: int) -> np.ndarray:
    """Means over side x side values; a remainder at the right and lower edge is left out."""
    h, w = values.shape[0] // side, values.shape[1] // side
    rows = values[: h * side, : w * side].reshape(h, side, w * side).sum(axis=1)
    return rows.reshape(h, w, side).sum(axis=2) / (side * side)


def _groups(cells: np.ndarray) -> int:
    """Groups of 8-connected cells less their holes, at least 0: the Euler number, from 2 x 2 patterns."""
    framed = np.zeros((cells.shape[0] + 2, cells.shape[1] + 2), np.int8)
    framed[1:-1, 1:-1] = cells
    corner = framed[:-1, :-1]
    used = corner + framed[:-1, 1:] + framed[1:, :-1] + framed[1:, 1:]
    diagonal = np.count_nonzero((used == 2) & (corner == framed[1:, 1:]))
    return max(0, (np.count_nonzero(used == 1) - np.count_nonzero(used == 3) - 2 * diagonal) // 4)


def _centre(cells: np.ndarray) -> tuple[float, float, float]:
    """centroid_x, centroid_y, spread of the gradient over the cells."""
    total = float(cells.sum())
    if total <= 1e-6:
        return 0.5, 0.5, 0.0
    moments = []
    for axis in (0, 1):  # summed over rows first: the profile along x
        weight = cells.sum(axis=axis) / total
        place = (np.arange(weight.size) + 0.5) / weight.size
        mean = float(weight @ place)
        moments.append((mean, float(weight @ (place - mean) ** 2)))
    (x, var_x), (y, var_y) = moments
    return x, y, (2 * (var_x + var_y)) ** 0.5


def _profiles(rows: np.ndarray, columns: np.ndarray, mean: float) -> tuple[float, float, float]:
    """row_profile, column_profile, row_alternation."""
    if mean <= 1e-6:
        return 0.0, 0.0, 0.0
    variation = [_moments(profile)[1] / mean for profile in (rows, columns)]
    above = rows > mean
    return *(v / (1 + v) for v in variation), np.count_nonzero(above[1:] != above[:-1]) / (above.size - 1)


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of (n,) values in one pass about the first value: a constant gives exactly 0."""
    offset = values - values[0]
    mean = float(offset.sum()) / offset.size
    return float(values[0]) + mean, math.sqrt(max(float(offset @ offset) / offset.size - mean**2, 0.0))


def _entropy(shares: np.ndarray) -> float:
    """Natural entropy of shares that sum to 1."""
    used = shares[shares > 0]
    return float(-(used * np.log(used)).sum())
