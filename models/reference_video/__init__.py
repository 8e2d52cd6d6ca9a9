"""The embedded model for videos: the reference model trained on, on frames of half the side, and its recipe."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""A `from_pretrained` folder, as that of the reference model."""
