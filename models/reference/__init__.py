"""The embedded reference model: a small LLaVA with real weights, its text tower, and the recipe that made them."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""A `from_pretrained` folder: model, processor, and `text_tower/` beside them."""
