"""What families with a pixel shuffle share: units of k x k patches, and pictures cut into tiles of one size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch import Tensor

from foveate.compressors.base import Grid
from foveate.models.boxes import WHOLE, Box, tiles
from foveate.models.decoder import Decoder
from foveate.models.errors import HostError, UnsupportedModel
from foveate.models.host import Host
from foveate.models.inputs import (
    TEXT,
    Film,
    Framed,
    Inputs,
    PromptShape,
    View,
    film_of,
    in_words,
    resized,
    scaled,
)
from foveate.models.processors import video_settings
from foveate.models.tower import Tower
from foveate.plans.cost import HostShape, ViTShape
from foveate.tasks.clip import Clip


def in_units(x: Tensor, grid: Grid, side: int) -> Tensor:
    """A map of patches -> units, the order in which both families' pixel shuffles put them.

    Args:
        x: (b, m, C), the m = side^2 * h * w patches row by row.
        grid: (1, h, w) of the units.
        side: k, patches along a unit's side.
    Returns:
        (b, h * w, side^2 * C): units row by row, each one's patches row by row.
    """
    _, h, w = grid
    split = x.unflatten(1, (h, side, w, side))
    return split.transpose(2, 3).flatten(3).flatten(1, 2)


def folded(kind: str, value: Tensor, grid: Grid, side: int) -> Tensor:
    """A signal of patches as one of units: attention (b, ..., m) is summed over a unit, keys (b, m, e) are averaged."""
    _, h, w = grid
    if kind == "keys":
        return value.unflatten(1, (h, side, w, side)).mean(dim=(2, 4)).flatten(1, 2)
    return value.unflatten(-1, (h, side, w, side)).sum(dim=(-3, -1)).flatten(-2)


class TiledInputs(Inputs):
    """Pictures as one view or several, all of one size, each behind text of its own.

    Args:
        processor: see `Inputs`.
        image_token_id: stands for a picture before it is framed, and for each of its tokens behind.
        size: (height, width) of a view in pixels.
        side: k, patches along a token's side.
        patch: pixels along a patch's side.
        video_text: see `Inputs`; None = videos are not taken.
    Raises:
        UnsupportedModel: views that are no squares of whole tokens.
        BadInput: see `Inputs`.

    Attributes:
        usual_video: settings of the video processor where nothing is said.
    """

    usual_video: ClassVar[Mapping[str, Any]] = {"resample": Image.Resampling.BICUBIC}

    def __init__(
        self,
        processor: Any,
        image_token_id: int,
        size: tuple[int, int],
        side: int,
        patch: int,
        video_text: str | None = None,
    ) -> None:
        super().__init__(processor, image_token_id)
        self.unit, self.video_text = side * patch, video_text
        along = size[0] // patch
        if size[0] != size[1] or along < 1 or along % side:
            raise UnsupportedModel(
                f"views of {size[0]} x {size[1]} pixels: needs squares of patches of {patch} whose number along a side "
                f"the pixel shuffle's {side} divides"
            )
        self.grid: Grid = (1, along // side, along // side)

    @abstractmethod
    def cut(self, rgb: np.ndarray) -> tuple[list[np.ndarray], str]:
        """A picture (H, W, 3) uint8 -> its views' pixels, and the text in its place with one marker for each token."""

    def framed(self, rgb: np.ndarray) -> Framed:
        """See `Inputs.framed`. Raises: HostError where markers and tokens do not match."""
        pixels, text = self.cut(rgb)
        return self.told(pixels, text, rgb.shape[:2])

    def told(self, pixels: Sequence[np.ndarray], text: str, size: tuple[int, int]) -> Framed:
        """A picture of (height, width) `size` from what `cut` gives. Raises: HostError, see `framed`."""
        views = tuple(View(each, self.grid) for each in pixels)
        ids = np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        seen = ids == self.image_token_id
        if seen.sum() != len(views) * views[0].n:
            raise HostError(f"{int(seen.sum())} image tokens in a picture's text for {len(views)} views of {self.grid}")
        view, position = np.full(len(ids), -1), np.full(len(ids), TEXT)
        view[seen] = np.repeat(np.arange(len(views)), views[0].n)
        position[seen] = np.tile(np.arange(views[0].n), len(views))
        return Framed(views, tuple(ids.tolist()), view, position, size)

    def filmed(self, clip: Clip) -> Framed:
        """See `Inputs.filmed`: each frame is one view's size, with words of its own."""
        if self.video_text is None:
            return super().filmed(clip)
        view = View(self.squares(clip.frames), (len(clip.frames), *self.grid[1:]))
        return self.film_told(view, clip.frames.shape[1:3], film_of(clip))

    def squares(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 at a view's size."""
        edge = self.grid[1] * self.unit
        return scaled(frames, (edge, edge), video_settings(self.processor, self.usual_video)["resample"])

    def film_told(self, view: View, size: tuple[int, int], film: Film) -> Framed:
        """A video with its prompt entries. Raises: HostError, see `in_words`."""
        return in_words(self.tokenizer, self.film_text, self.image_token, view, size, film)

    def film_text(self, film: Film, run: str) -> str:
        """The text in a video's place.

        Args:
            film: when its frames are shown.
            run: the markers of one frame.
        """
        raise HostError("videos of this model have no text")

    def refit(self, picture: Framed, grids: Sequence[Grid]) -> Framed:
        """See `Inputs.refit`: each view's run of markers is as long as its new grid is large.

        Raises:
            HostError: not one grid for each view, or one that is larger than the view's own.
        """
        if len(grids) != len(picture.views):
            raise HostError(f"{len(grids)} grids for a picture of {len(picture.views)} views")
        for new, view in zip(grids, picture.views, strict=True):
            if new[0] != view.grid[0] or any(not 1 <= n <= old for n, old in zip(new, view.grid, strict=True)):
                raise HostError(f"a view of grid {view.grid} cannot be shown at {new}: views only get smaller")
        if picture.film is not None:
            return self.film_told(resized(picture.views[0], grids[0], self.unit), picture.size, picture.film)
        left = np.asarray([new[1] * new[2] for new in grids])
        stays = (picture.view < 0) | (picture.position < left[picture.view])
        views = tuple(
            view if new == view.grid else resized(view, new, self.unit)
            for new, view in zip(grids, picture.views, strict=True)
        )
        ids = tuple(np.asarray(picture.ids)[stays].tolist())
        return Framed(views, ids, picture.view[stays], picture.position[stays], picture.size)

    def boxes(self, picture: Framed) -> list[Box]:
        """See `Inputs.boxes`: tiles row by row, arranged as the picture's shape is, then all of it."""
        n, (height, width) = len(picture.views) - 1, picture.size
        if n < 1:
            return [WHOLE]
        columns = min((c for c in range(1, n + 1) if n % c == 0), key=lambda c: abs(c * c / n - width / height))
        return [*tiles(n // columns, columns), WHOLE]

    def pixels(self, views: Sequence[View]) -> Tensor:
        """See `Inputs.pixels`."""
        return self.normalised(views)


class ShuffleHost(Host):
    """A model whose pictures are tiles and whose tokens are units; see `Host`."""

    _usual: PromptShape | None = None

    def prompt_shape(self, n_text: int) -> PromptShape:
        """See `Host.prompt_shape`: a picture of one view's size, with its markers; on paper, that view alone."""
        if self._usual is None:
            return PromptShape(n_text, (self.grid,))
        return PromptShape(n_text + self._usual.n_text, self._usual.grids)

    def _settle(self, inputs: TiledInputs) -> TiledInputs:
        """Takes over what the processor, and not the configuration, says about a usual picture."""
        self.grid = inputs.grid
        edge = inputs.grid[1] * inputs.unit
        usual = inputs.framed(np.zeros((edge, edge, 3), np.uint8))
        self._usual = PromptShape(int((usual.view < 0).sum()), tuple(view.grid for view in usual.views))
        return inputs


def shape_of(tower: Tower, config: Any, decoder: Decoder, projector: tuple[int, ...]) -> HostShape:
    """Sizes for the cost model.

    Args:
        tower: opened.
        config: of the tower.
        decoder: opened.
        projector: widths behind the units.
    """
    return HostShape(
        vit=ViTShape(
            dim=config.hidden_size,
            mlp=config.intermediate_size,
            layers=tower.depth,
            heads=tower.heads,
            patch=tower.patch,
            channels=config.num_channels,
            cls=tower.has_cls,
            merge=tower.merge,
        ),
        projector=(tower.merge * config.hidden_size, *projector),
        decoder=decoder.shape,
        bytes_per_value=decoder.bytes_per_value,
    )
