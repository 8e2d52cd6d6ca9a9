"""Every visual-token compressor: one method, one small file, filed by the stage where it acts.

Importing this package imports every module under it, so that the registry is complete.
"""

from importlib import import_module
from pkgutil import walk_packages

for _module in walk_packages(__path__, prefix=f"{__name__}."):
    import_module(_module.name)
