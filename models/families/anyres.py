"""AnyRes, what LLaVA-NeXT and LLaVA-OneVision share: a picture is cut into tiles beside one view of all of it.

The tiles' tokens are put together again to one map, the rows and columns that only show padding are cut off, and every
row of the map ends with a newline vector. OneVision shrinks a map that is still too large, bilinearly, behind the
projector: its entries are then mixtures of up to four tokens and no longer tokens themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.compressors.base import Grid
from foveate.compressors.learned import Projector
from foveate.models.boxes import WHOLE, Box, padded_to, tiles
from foveate.models.decoder import Decoder
from foveate.models.errors import BadInput, HostError, UnsupportedModel
from foveate.models.families.layout import FilmLayout, Layout, Size, best_resolution
from foveate.models.families.llava import check_parts, shape_of, two_matrices
from foveate.models.host import Host
from foveate.models.inputs import (
    Film,
    Framed,
    Inputs,
    Pictures,
    PromptShape,
    Row,
    View,
    as_shown,
    film_of,
    kinds_of,
    resized,
    scaled,
)
from foveate.models.processors import video_settings
from foveate.models.tensors import Tensors, apart
from foveate.models.vit import VisionTower
from foveate.tasks.clip import Clip

VIDEO = {"resample": Image.Resampling.BICUBIC}
"""What a video processor says where there is none: the filter."""


class AnyResTensors(Tensors):
    """Pixels (pictures, most views, 3, side, side), blank behind a picture's own views, and the pictures' sizes.

    OneVision's processor also says how many pictures were put to it together, `batch_num_images`: of several in one
    list each is its view of all alone.
    """

    names = Tensors.names | {"image_sizes", "batch_num_images", "pixel_values_videos"}

    def of(self, rows: Sequence[Row], ids: Tensor) -> dict[str, Tensor]:
        """See `Tensors.of`."""
        stills = [[picture for picture in row.pictures if picture.film is None] for row in rows]
        films = [picture.views[0] for row in rows for picture in row.pictures if picture.film is not None]
        pictures, made = [picture for each in stills for picture in each], {}
        if films:
            made["pixel_values_videos"] = apart([list(self.inputs.pixels(film.units)) for film in films])
        if not pictures:
            return made
        made["pixel_values"] = apart([list(self.inputs.pixels(picture.views)) for picture in pictures])
        made["image_sizes"] = torch.tensor([picture.size for picture in pictures])
        if not self.inputs.nested:
            return made
        counts = [[len(each)] if each and len(each[0].views) == 1 else [1] * len(each) for each in stills]
        return made | {"batch_num_images": torch.tensor([n for each in counts for n in each])}

    def pictures(self, prompts: Sequence[Sequence[int]], given: Mapping[str, Any]) -> list[list[Framed]]:
        """See `Tensors.pictures`."""
        films = self._films(given) if given.get("pixel_values_videos") is not None else []
        if films and given.get("pixel_values") is None:
            return self.dealt(prompts, films)
        values, sizes = self.tensor(given, "pixel_values", 5), self.tensor(given, "image_sizes", 2).tolist()
        side, lists = self.inputs.side, given.get("batch_num_images")
        lists = [1] * len(sizes) if lists is None else torch.as_tensor(lists).flatten().tolist()
        if len(sizes) != len(values) or sum(lists) != len(values) or tuple(values.shape[2:]) != (3, side, side):
            raise BadInput(
                f"pixel_values {tuple(values.shape)}: needs tiles of {(3, side, side)} for {len(sizes)} image_sizes in "
                f"lists of {lists}"
            )
        made, alone = [], [n == 1 for n in lists for _ in range(n)]
        for pixels, size, tiled in zip(values, sizes, alone, strict=True):
            rows, columns = self.inputs.tiles(size) if tiled else (0, 0)
            if 1 + rows * columns > len(pixels):
                raise BadInput(f"pixel_values: {len(pixels)} tiles, a picture of {size} has {1 + rows * columns}")
            views = [View(each, self.inputs.grid) for each in self.whole(pixels[: 1 + rows * columns])]
            made.append(self.inputs.entries(views, (size[0], size[1])))
        return self.dealt(prompts, [*made, *films])

    def _films(self, given: Mapping[str, Any]) -> list[Framed]:
        """Videos; their own sizes and times are not known, and nothing hangs on them. Raises: BadInput."""
        values, side = self.tensor(given, "pixel_values_videos", 5), self.inputs.side
        if self.inputs.video_token_id == self.token or tuple(values.shape[2:]) != (3, side, side):
            raise BadInput(f"pixel_values_videos {tuple(values.shape)}: no videos of frames of {(3, side, side)}")
        _, h, w = self.inputs.grid
        clips = [Clip.of(frames) for frames in self.whole(values)]
        return [self.inputs.told(View(c.frames, (len(c.frames), h, w)), (side, side), film_of(c)) for c in clips]


class AnyResInputs(Inputs):
    """Pictures as tiles.

    Args:
        processor: an HF processor whose image processor cuts tiles.
        image_token_id: as in `Inputs`.
        side: pixels along a tile.
        patch: pixels along a token.
        pinpoints: (height, width) of the resolutions that the model knows.
        most_tiles: as in `Layout`.
        nested: several pictures of a row are put to the image processor together, and then not cut into tiles.
        video_token_id: as in `Inputs`; None = videos are not taken.
    Raises:
        UnsupportedModel: processor and model disagree about tiles, or the resolutions are no whole tiles.
    """

    tensors = AnyResTensors

    def __init__(
        self,
        processor: Any,
        image_token_id: int,
        side: int,
        patch: int,
        pinpoints: Sequence[Sequence[int]],
        most_tiles: int | None = None,
        nested: bool = False,
        video_token_id: int | None = None,
    ) -> None:
        super().__init__(processor, image_token_id, video_token_id)
        self.side, self.patch, self.most_tiles, self.nested = side, patch, most_tiles, nested
        self.pinpoints = [(int(h), int(w)) for h, w in pinpoints]
        self.grid: Grid = (1, side // patch, side // patch)
        theirs = [(int(h), int(w)) for h, w in processor.image_processor.image_grid_pinpoints]
        if theirs != self.pinpoints:
            raise UnsupportedModel(f"the processor cuts for {theirs}, the model expects {self.pinpoints}")
        odd = [p for p in self.pinpoints if p[0] % side or p[1] % side]
        if odd:
            raise UnsupportedModel(f"image_grid_pinpoints {odd[0]}: no whole tiles of {side} pixels")

    def tiles(self, size: Size) -> Size:
        """Rows and columns of tiles of a picture of (height, width) pixels."""
        height, width = best_resolution(size, self.pinpoints)
        return height // self.side, width // self.side

    def row(self, image: Pictures, question: str, number: int) -> Row:
        """See `Inputs.row`."""
        each = list(image) if isinstance(image, (list, tuple)) else [image]
        shown = [as_shown(one, number) for one in each]
        stills = [one for one in shown if not isinstance(one, Clip)]
        if not self.nested or len(stills) < 2:
            return super().row(shown, question, number)
        prompt, ids = self.prompt(question, number, kinds_of(shown))
        cut = iter(self._cut([stills]))
        made = [
            self.filmed(one) if isinstance(one, Clip) else self.entries(next(cut)[:1], one.shape[:2]) for one in shown
        ]
        return self.laid(made, question, prompt, ids)

    def framed(self, rgb: np.ndarray) -> Framed:
        """See `Inputs.framed`: the view of all first, then the tiles row by row."""
        rows, columns = self.tiles(rgb.shape[:2])
        return self.entries(self._cut([rgb])[0][: 1 + rows * columns], rgb.shape[:2])

    def filmed(self, clip: Clip) -> Framed:
        """See `Inputs.filmed`: each frame squeezed to a tile."""
        if self.video_token_id == self.image_token_id:
            return super().filmed(clip)
        frames = scaled(clip.frames, (self.side, self.side), video_settings(self.processor, VIDEO)["resample"])
        return self.told(View(frames, (len(frames), *self.grid[1:])), clip.frames.shape[1:3], film_of(clip))

    def told(self, view: View, size: Size, film: Film) -> Framed:
        """A video with its prompt entries."""
        layout = FilmLayout(view.grid)
        shown, position = layout.entries()
        ids = (self.video_token_id,) * len(shown)
        return Framed((view,), ids, shown, position, size, layout, layout.is_shrunk, film)

    def refit(self, picture: Framed, grids: Sequence[Grid]) -> Framed:
        """See `Inputs.refit`; see `one_grid`."""
        grid = one_grid(grids)
        if picture.film is not None:
            return self.told(resized(picture.views[0], grid, self.patch), picture.size, picture.film)
        return self.entries([resized(view, grid, self.patch) for view in picture.views], picture.size)

    def boxes(self, picture: Framed) -> list[Box]:
        """See `Inputs.boxes`: all of the picture, squeezed; then tiles of it as it is padded to them. Alone, padded."""
        if len(picture.views) == 1:
            return padded_to(picture.size, (1, 1), [WHOLE])
        cut = picture.layout.tiles
        return [WHOLE, *padded_to(picture.size, cut, tiles(*cut))]

    def pixels(self, views: Sequence[View]) -> Tensor:
        """See `Inputs.pixels`."""
        return self.normalised(views)

    def _cut(self, pictures: Sequence[Any]) -> list[list[View]]:
        """Of each picture: its views, and where others have more, blank ones behind them."""
        made = self.processor.image_processor(pictures, do_rescale=False, do_normalize=False, return_tensors="np")
        values = np.asarray(made["pixel_values"])  # (pictures, most views, 3, H, W)
        if values.shape[-2:] != (self.side, self.side):
            raise BadInput(f"the processor makes tiles of {values.shape[-2:]} pixels, the model expects {self.side}")
        return [[View(v.transpose(1, 2, 0).astype(np.uint8), self.grid) for v in views] for views in values]

    def entries(self, views: Sequence[View], size: Size) -> Framed:
        """A picture with its prompt entries."""
        tiles = (0, 0) if len(views) == 1 else self.tiles(size)
        layout = Layout(size, tiles, views[0].grid, self.most_tiles)
        view, position = layout.entries()
        ids = (self.image_token_id,) * len(view)
        return Framed(tuple(views), ids, view, position, size, layout, layout.is_shrunk)


class AnyResHost(Host):
    """What both families share; see `Host`.

    Views are tiles, and methods up to the projector act on each by itself. Tokens that the prompt does not show
    (padding) leave a tile behind the tower: ratios further on count from what is left. A method inside the tower sees
    them all, and what it anchors on padding is lost there, so fewer tokens than its count may reach the prompt.

    A map that OneVision shrinks holds mixtures of tokens only while nothing has acted before the projector; they are
    made of all tokens, which all pass the projector. What thins the tiles before acts on, and the prompt then shows,
    the tokens nearest to the entries, unmixed: a departure from the model, so that counts follow the ratio.

    Attributes:
        most_tiles: see `Layout`.
    """

    most_tiles: int | None = None

    @classmethod
    def check(cls, config: Any, name: str) -> None:
        """See `Host.check`."""
        check_parts(config, name)

    def parts(self) -> None:
        """See `Host.parts`."""
        c, core = self.model.config, self.model.model
        self.tower = VisionTower(core.vision_tower, c.vision_feature_layer)
        self.decoder = Decoder(core.language_model, self.model.lm_head)
        self.grid, self.shape = self.tower.grid, shape_of(self.tower, self.decoder)

    def tiled(self, processor: Any, nested: bool = False) -> AnyResInputs:
        """The family's inputs, see `AnyResInputs`."""
        c = self.model.config
        side, patch = c.vision_config.image_size, self.tower.patch
        pinpoints, films = c.image_grid_pinpoints, getattr(c, "video_token_index", None) if nested else None
        return AnyResInputs(processor, c.image_token_index, side, patch, pinpoints, self.most_tiles, nested, films)

    def project(self, x: Tensor) -> Tensor:
        """See `Host.project`."""
        return self.model.model.multi_modal_projector(x)

    def matrices(self) -> Projector:
        """See `Host.matrices`."""
        return two_matrices(self.model)

    def newline(self) -> Tensor:
        """See `Host.newline`."""
        return self.model.model.image_newline

    def prompt_shape(self, n_text: int) -> PromptShape:
        """See `Host.prompt_shape`: a square picture that fills 2 x 2 tiles, or else the first resolution it knows."""
        c = self.model.config
        side, known = c.vision_config.image_size, [tuple(p) for p in c.image_grid_pinpoints]
        size = (2 * side, 2 * side) if (2 * side, 2 * side) in known else known[0]
        return shape_with(n_text, [Layout(size, (size[0] // side, size[1] // side), self.grid, self.most_tiles)])

    def reshaped(self, shape: PromptShape, grids: Sequence[Grid]) -> PromptShape:
        """See `Host.reshaped`."""
        layouts, at = [], 0
        for layout in shape.layouts:
            layouts.append(replace(layout, grid=one_grid(grids[at : at + layout.n_views])))
            at += layout.n_views
        made = shape_with(shape.n_text - shape.newlines, layouts)
        return replace(made, phrases=shape.phrases, before=None if made.before is None else shape.before)

    def mixed(self, picture: Framed, x: Sequence[Tensor]) -> list[Tensor]:
        """See `Host.mixed`."""
        if picture.film is not None:
            return picture.layout.mixed(torch.stack(list(x)))
        return [x[0], *picture.layout.mixed(torch.stack(list(x[1:])))]


def shape_with(words: int, layouts: Sequence[Layout]) -> PromptShape:
    """The shape of a prompt of so many words and these pictures."""
    grids = tuple(layout.grid for layout in layouts for _ in range(layout.n_views))
    shown = tuple(grid for layout in layouts for grid in layout.shown())
    mixed = tuple(layout.is_shrunk for layout in layouts for _ in range(layout.n_views))
    newlines = sum(layout.newlines for layout in layouts)
    return PromptShape(
        n_text=words + newlines,
        grids=grids,
        shown=() if shown == grids else shown,
        newlines=newlines,
        mixed=mixed if any(mixed) else (),
        layouts=tuple(layouts),
        before=None if newlines > 1 else 0,
    )


def one_grid(grids: Sequence[Grid]) -> Grid:
    """The grid of all views of a picture. Raises: HostError where they differ: tiles make one map."""
    if len(set(grids)) != 1:
        raise HostError(f"tiles of a picture keep one grid; asked for {sorted(set(grids))}")
    return grids[0]
