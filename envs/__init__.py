"""The decision problem as a Gymnasium environment.

Importing this package registers `foveate/Compression-v0` and loads no model code.
"""

from gymnasium.envs.registration import register, registry

ENV_ID = "foveate/Compression-v0"

if ENV_ID not in registry:
    register(id=ENV_ID, entry_point="foveate.envs.compression:CompressionEnv")

__all__ = ["ENV_ID"]
