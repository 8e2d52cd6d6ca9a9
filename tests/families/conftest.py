"""Lets the tests of families import the builders of tiny models beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
