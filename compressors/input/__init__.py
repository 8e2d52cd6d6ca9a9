"""Methods that act on the pixels: image size and number of frames."""
