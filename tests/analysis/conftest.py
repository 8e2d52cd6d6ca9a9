"""The toy tables of the policies' tests."""

import importlib.util
from pathlib import Path

_path = Path(__file__).parent.parent / "policies" / "conftest.py"
_spec = importlib.util.spec_from_file_location("toy_tables", _path)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
toy = _module.toy
