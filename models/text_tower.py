"""The text tower beside a model: questions and visual tokens in one space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from foveate.compressors.phrases import parse, phrase_similarity
from foveate.models.errors import UnsupportedModel
from foveate.models.inputs import padded
from foveate.models.visual import groups
from foveate.plans.cost import ViTShape, vit_block

FOLDER = "text_tower"
PROJECTION = "visual_projection.safetensors"


class TextTower:
    """A CLIP text tower and the projection of vision states that was trained with it.

    Args:
        model: the tower.
        projection: (P, D) weight: projects states of the vision tower, behind its last norm.
        tokenizer: the host's.
    """

    def __init__(self, model: CLIPTextModelWithProjection, projection: Tensor, tokenizer: Any) -> None:
        self.model, self.projection, self.tokenizer = model.eval(), projection, tokenizer
        c = model.config
        self.limit, self.width = c.max_position_embeddings, c.projection_dim
        sizes = (c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads)
        self.shape = ViTShape(*sizes, patch=1, cls=False)
        if projection.shape[0] != self.width:
            raise UnsupportedModel(f"text tower: joint width {self.width}, visual projection {projection.shape[0]}")

    @classmethod
    def load(cls, folder: Path, tokenizer: Any, dtype: torch.dtype, device: torch.device) -> TextTower | None:
        """The tower in `folder`, or None where there is none. Raises: UnsupportedModel where it is incomplete."""
        if not folder.is_dir():
            return None
        if not (folder / PROJECTION).is_file():
            raise UnsupportedModel(f"{folder}: {PROJECTION} is missing")
        weight = load_file(folder / PROJECTION)["weight"].to(device, dtype)
        return cls(CLIPTextModelWithProjection.from_pretrained(folder, dtype=dtype).to(device), weight, tokenizer)

    def ids(self, question: str) -> list[int]:
        """Token ids: the tokenizer's, cut to the tower's length, one end token behind."""
        found = self.tokenizer(question, truncation=True, max_length=self.limit - 1)["input_ids"]
        end = self.tokenizer.eos_token_id
        return found if found and found[-1] == end else [*found, end]

    def embed(self, questions: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Unit embeddings (B, P) float32 of questions, read at the end token, and the FLOPs of each."""
        rows = [self.ids(q) for q in questions]
        ids, length = padded(rows, self.projection.device)
        core, mask = self.model.text_model, None
        if self.model.config._attn_implementation == "eager":  # fused kernels know what causal means
            s = ids.shape[1]
            ahead = torch.ones(s, s, dtype=torch.bool, device=ids.device).triu(1)
            mask = torch.zeros(1, 1, s, s, device=ids.device).masked_fill(ahead, torch.finfo(torch.float32).min)
        hidden = core.embeddings(input_ids=ids)
        for layer in core.encoder.layers:  # padded on the right: no real token sees padding
            hidden = layer(hidden, attention_mask=mask, is_causal=True)
        hidden = core.final_layer_norm(hidden)
        last = hidden[torch.arange(len(rows), device=ids.device), length - 1]
        return F.normalize(self.model.text_projection(last).float(), dim=-1), [self.flops(len(r)) for r in rows]

    def embed_phrases(self, question: str) -> tuple[list[str], Tensor, int]:
        """Kinds and unit embeddings (p, P) float32 of a question's phrases, and the FLOPs of all of them."""
        listed, total = parse(question).listed(), 0
        vectors = torch.zeros(len(listed), self.width, device=self.projection.device)
        for _, members in groups([len(self.ids(phrase)) for _, phrase in listed]):  # of one length: nothing is padded
            vectors[members], flops = self.embed([listed[i][1] for i in members])
            total += sum(flops)
        return [kind for kind, _ in listed], vectors, total

    def phrase_tokens(self, question: str) -> tuple[int, ...]:
        """Tokens of each phrase of a question, see `compressors.phrases`."""
        return tuple(len(self.ids(phrase)) for _, phrase in parse(question).listed())

    def flops(self, n: int) -> int:
        """FLOPs of a question of n tokens."""
        return self.shape.layers * vit_block(self.shape, n) + 2 * self.shape.dim * self.width

    def similarity(self, x: Tensor, norm: nn.Module, text: Tensor) -> Tensor:
        """Cosine (b, n) float32 of vision states x (b, n, D), normed and projected, with text (b, P)."""
        return (self._seen(x, norm) @ text[:, :, None])[..., 0]

    def phrase_similarity(self, x: Tensor, norm: nn.Module, phrases: Sequence[tuple[list[str], Tensor]]) -> Tensor:
        """The signal of that name (b, 3, n) for vision states as above and each row's phrases: kinds, texts (p, P)."""
        seen = self._seen(x, norm)
        return torch.stack([phrase_similarity(s, text, kinds) for s, (kinds, text) in zip(seen, phrases, strict=True)])

    def _seen(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Vision states (b, n, D) in the joint space: (b, n, P) float32 of length 1."""
        return F.normalize((norm(x) @ self.projection.T).float(), dim=-1)

    def similarity_flops(self, n: int, texts: int = 1) -> int:
        """FLOPs of `similarity`, or of `phrase_similarity` with so many phrases, on one row of n tokens."""
        return 2 * n * self.width * (self.projection.shape[1] + texts)
