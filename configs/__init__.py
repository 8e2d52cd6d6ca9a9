"""Configuration files that ship with the package: read them with `importlib.resources.files("foveate.configs")`.

A regular package on purpose: an editable install of a namespace package shows no resources.
"""
