"""Methods that act on the KV cache, layer by layer, after the prompt has been read."""
