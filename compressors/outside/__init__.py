"""Methods that act on the encoder's output, before the projector."""
