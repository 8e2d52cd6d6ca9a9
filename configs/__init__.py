"""Configuration files that ship with the package: read them with `importlib.resources.files("foveate.configs")`.

A regular package on purpose: in an editable install a namespace package has no readable resources on Python 3.11 and 3.12.
"""
