"""Maps of one feature: what a grid method does can be read off as numbers."""

import pytest
import torch


@pytest.fixture
def grid_of(tiny):
    """Tokens of a whole grid (T, H, W) whose single feature has these values."""

    def build(values, *grid):
        x = torch.as_tensor(values, dtype=torch.float32).view(1, -1, 1)
        return tiny(n=x.shape[1], grid=grid, x=x)

    return build
