"""Who may see what: every programme, font, picture and digit image belongs to exactly one split."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

from foveate.tasks.base import SPLITS

SHARES = {"host-train": 0.5, "policy-train": 0.2, "validation": 0.1, "calibration": 0.1, "test": 0.1}

# Each split holds a sans, a serif and a monospaced or condensed face, so that no split is all of one kind.
FONTS = {
    "host-train": (
        "DejaVuSans",
        "DejaVuSans-BoldOblique",
        "DejaVuSansCondensed-Bold",
        "DejaVuSansMono",
        "DejaVuSansMono-BoldOblique",
        "DejaVuSerif",
        "DejaVuSerif-Italic",
        "DejaVuSerifCondensed-Bold",
    ),
    "policy-train": ("DejaVuSans-Oblique", "DejaVuSerif-Bold", "DejaVuSansMono-Oblique"),
    "validation": ("DejaVuSansCondensed", "DejaVuSansCondensed-BoldOblique", "DejaVuSerifCondensed-Italic"),
    "calibration": ("DejaVuSansCondensed-Oblique", "DejaVuSerif-BoldItalic", "DejaVuSerifCondensed-BoldItalic"),
    "test": ("DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerifCondensed"),
}


def digest(programme: Any) -> str:
    """Hex digest (16 characters) of plain data, the same on every machine and in every process."""
    text = json.dumps(programme, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def split_of(key: str) -> str:
    """The split that a hex digest belongs to: its first 32 bits, cut at the cumulated shares."""
    place, edge = int(key[:8], 16) / 2**32, 0.0
    for split in SPLITS:
        edge += SHARES[split]
        if place < edge:
            return split
    return SPLITS[-1]  # the shares add up to 1 only up to rounding


def stream(*key: object) -> random.Random:
    """A generator of its own for every key; strings seed it through SHA-512, so hash randomisation plays no part."""
    return random.Random("/".join(str(part) for part in key))
