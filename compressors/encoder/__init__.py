"""Methods that act inside ViT blocks, between attention and MLP."""
