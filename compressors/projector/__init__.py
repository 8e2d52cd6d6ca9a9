"""Methods that act before, after or instead of the projector."""
