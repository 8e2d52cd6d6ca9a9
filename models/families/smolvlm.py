"""SmolVLM and Idefics3: a SigLIP tower for any size, a k x k pixel shuffle, one linear layer, a LLaMA decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Idefics3ForConditionalGeneration, SmolVLMForConditionalGeneration

from foveate.compressors.base import Grid
from foveate.models.decoder import Decoder, check_decoder
from foveate.models.errors import BadInput, UnsupportedModel
from foveate.models.families.shuffle import ShuffleHost, TiledInputs, folded, in_units, shape_of
from foveate.models.families.spelling import spelled
from foveate.models.inputs import Film, Framed, Row, scaled
from foveate.models.processors import video_settings
from foveate.models.tensors import Tensors, apart
from foveate.models.vit import VisionTower


class SmolVLMTower(VisionTower):
    """SigLIP blocks; a patch takes the learned position at its place, as a fraction of its view.

    Args:
        tower: `SmolVLMVisionTransformer` or `Idefics3VisionTransformer`.
        side: k, patches along a token's side.
    """

    def __init__(self, tower: nn.Module, side: int) -> None:
        super().__init__(tower, tower.config.num_hidden_layers)
        self.side, self.merge = side, side**2

    def embed(self, pixels: Tensor, grid: Grid) -> Tensor:
        """See `Tower.embed`; views fill their frames: the masks of patches that a tower takes are all true."""
        whole = torch.ones(
            len(pixels), grid[1] * self.side, grid[2] * self.side, dtype=torch.bool, device=self.norm_out.weight.device
        )
        return self.embeddings(pixels.to(whole.device), whole)

    def tokens(self, x: Tensor, grid: Grid) -> Tensor:
        """See `Tower.tokens`."""
        return in_units(self.norm_out(x), grid, self.side)

    def folded(self, kind: str, value: Tensor, grid: Grid) -> Tensor:
        """See `Tower.folded`."""
        return folded(kind, value, grid, self.side)


class SmolVLMTensors(Tensors):
    """Pixels (rows, most views, 3, H, W), blank behind a row's own views, and which pixels are no padding."""

    names = Tensors.names | {"pixel_attention_mask"}
    overview = -1

    def of(self, rows: Sequence[Row], ids: Tensor) -> dict[str, Tensor]:
        """See `Tensors.of`."""
        units = [[unit for view in row.views for unit in view.units] for row in rows]
        pixels = apart([list(self.inputs.pixels(each)) for each in units])
        shown = torch.tensor([[i < len(each) for i in range(pixels.shape[1])] for each in units])
        mask = shown[:, :, None, None].expand(-1, -1, *pixels.shape[-2:])
        return {"pixel_values": pixels, "pixel_attention_mask": mask.long()}

    def pictures(self, prompts: Sequence[Sequence[int]], given: Mapping[str, Any]) -> list[list[Framed]]:
        """See `Tensors.pictures`; a picture's own size is not known."""
        values, mask = self.tensor(given, "pixel_values", 5), given.get("pixel_attention_mask")
        (_, h, w), unit = self.inputs.grid, self.inputs.unit
        if tuple(values.shape[2:]) != (3, h * unit, w * unit) or len(values) != len(prompts):
            wanted = (len(prompts), "views", 3, h * unit, w * unit)
            raise BadInput(f"pixel_values {tuple(values.shape)}: the model's are {wanted}")
        blank, out = (values == 0).flatten(2).all(2), []
        for number, prompt in enumerate(prompts):
            n = prompt.count(self.token) // (h * w)
            if n > values.shape[1] or blank[number, :n].any() or not blank[number, n:].all():
                raise BadInput(f"row {number}: its prompt shows {n} views, pixel_values has others")
            if mask is not None and not mask[number, :n].bool().all():
                raise BadInput(
                    f"row {number}: pixel_attention_mask leaves out a part of a view; this host's views are whole"
                )
            out.append(self._row(prompt, list(self.whole(values[number, :n])), number) if n else [])
        return out

    def _row(self, prompt: Sequence[int], pixels: list[np.ndarray], number: int) -> list[Framed]:
        """A row's pictures, by the tiles that its prompt names."""
        found, at, size = [], 0, pixels[0].shape[:2]
        while pixels:
            begin = prompt.index(self.token, at)
            for rows, columns in self.inputs.arrangements(len(pixels)):
                views = pixels[: rows * columns + 1]
                picture = self.inputs.told(views, self.inputs.text_of(rows, columns), size)
                first = begin - picture.ids.index(self.token)
                at = first + len(picture.ids)
                if tuple(prompt[max(0, first) : at]) == picture.ids:
                    break
            else:
                raise BadInput(
                    f"row {number}: picture {len(found)} is in no arrangement that this model's processor makes"
                )
            found.append(picture)
            pixels = pixels[len(views) :]
        return found


class SmolVLMInputs(TiledInputs):
    """Tiles of the enlarged picture row by row, then all of it as one more; a small picture is that last view alone.

    Args:
        processor, image_token_id, side, patch: see `TiledInputs`.
        films: videos are taken.
    """

    tensors = SmolVLMTensors
    usual_video = {"resample": Image.Resampling.LANCZOS, "size": {"longest_edge": 4 * 364}, "video_sampling": {}}

    def __init__(self, processor: Any, image_token_id: int, side: int, patch: int, films: bool = True) -> None:
        edge, video = processor.image_processor.max_image_size["longest_edge"], "<video>" if films else None
        super().__init__(processor, image_token_id, (edge, edge), side, patch, video)
        words = processor.tokenizer
        self.around = getattr(words, "fake_image_token", "<fake_token_around_image>")
        self.overview = getattr(words, "global_image_token", "<global-img>")

    def squares(self, frames: np.ndarray) -> np.ndarray:
        """See `TiledInputs.squares`: first to a longest side of the video processor's."""
        how = video_settings(self.processor, self.usual_video)
        longest, size = how["video_sampling"].get("video_size", how["size"])["longest_edge"], list(frames.shape[1:3])
        wide = int(size[1] >= size[0])
        short = int(longest * size[1 - wide] / size[wide])
        size[wide], size[1 - wide] = longest, max(1, short + short % 2)
        return super().squares(scaled(frames, (size[0], size[1]), how["resample"]))

    def film_text(self, film: Film, run: str) -> str:
        """See `TiledInputs.film_text`: how many frames, of how long a video, and when each of them is shown."""
        how_long = timedelta(seconds=int(film.duration))
        text = f"You are provided the following series of {spelled(len(film.seconds))} frames from a {how_long} "
        text += "[H:MM:SS] video.\n"
        for second in film.seconds:
            text += f"\nFrame from {int(second // 60):02d}:{int(second % 60):02d}:"
            text += f"{self.around}{self.overview}{run}{self.around}"
        return f"{text}\n\n"

    def cut(self, rgb: np.ndarray) -> tuple[list[np.ndarray], str]:
        """See `TiledInputs.cut`."""
        settings = {"do_rescale": False, "do_normalize": False, "do_pad": False, "return_row_col_info": True}
        done = self.processor.image_processor([rgb], input_data_format="channels_last", **settings)
        views = [np.asarray(each).transpose(1, 2, 0) for each in done["pixel_values"][0]]
        return views, self.text_of(int(done["rows"][0][0]), int(done["cols"][0][0]))

    def arrangements(self, views: int) -> list[tuple[int, int]]:
        """Rows and columns of tiles that a picture of at most so many views can have; (0, 0) = its last view alone."""
        how, edge = self.processor.image_processor, self.grid[1] * self.unit
        most = -(-max(how.size["longest_edge"], edge) // edge)
        tiled = [(r, c) for r in range(1, most + 1) for c in range(1, most + 1) if r * c < views]
        return [(0, 0), *tiled]

    def text_of(self, rows: int, columns: int) -> str:
        """The text in a picture's place: each tile behind its row and column, the whole picture in the end."""
        run = self.image_token * (self.grid[1] * self.grid[2])
        tiles = ""
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                tiles += f"{self.around}<row_{row}_col_{column}>{run}"
            tiles += "\n"
        return f"{tiles}{chr(10) * bool(tiles)}{self.around}{self.overview}{run}{self.around}"


class SmolVLMHost(ShuffleHost):
    """An HF `SmolVLMForConditionalGeneration` or `Idefics3ForConditionalGeneration`; see `Host`."""

    @classmethod
    def model_class_of(cls, config: Any) -> Any:
        """See `Host.model_class_of`."""
        return Idefics3ForConditionalGeneration if config.model_type == "idefics3" else SmolVLMForConditionalGeneration

    @classmethod
    def check(cls, config: Any, name: str) -> None:
        """See `Host.check`."""
        check_decoder(config, name)
        vision, side = config.vision_config, config.scale_factor
        sizes = (vision.image_size, vision.patch_size)
        if not all(isinstance(size, int) for size in sizes) or sizes[0] // sizes[1] % side:
            raise UnsupportedModel(
                f"{name}: views of {sizes[0]} in patches of {sizes[1]}: needs squares whose sides {side} divides"
            )

    def parts(self) -> None:
        """See `Host.parts`."""
        c, core = self.model.config, self.model.model
        self.tower = SmolVLMTower(core.vision_model, c.scale_factor)
        self.decoder = Decoder(core.text_model, self.model.lm_head)
        along = self.tower.grid[1] // c.scale_factor
        self.grid = (1, along, along)
        self.shape = shape_of(self.tower, c.vision_config, self.decoder, (c.text_config.hidden_size,))

    def inputs_of(self, processor: Any) -> SmolVLMInputs:
        """See `Host.inputs_of`."""
        token = self.model.config.image_token_id
        films = self.model.config.model_type != "idefics3"
        return self._settle(SmolVLMInputs(processor, token, self.tower.side, self.tower.patch, films))

    def project(self, x: Tensor) -> Tensor:
        """See `Host.project`."""
        return self.model.model.connector.modality_projection(x)
