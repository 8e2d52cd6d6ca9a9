"""Methods that act between decoder layers while the prompt is read."""
