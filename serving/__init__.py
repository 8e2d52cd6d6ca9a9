"""Where a controller stands in front of a model."""
