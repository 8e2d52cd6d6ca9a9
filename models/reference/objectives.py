"""What the reference model is trained on: answers, what covers each patch, and captions.

Dense labels and captions come free with generated pictures. Without the dense loss a small ViT does not learn shapes
in reasonable time; without the caption loss no gradient reaches CLS, and methods that rank by CLS attention rank
noise.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import CLIPTextModelWithProjection, LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from foveate.models.reference.architecture import JOINT, VIT, encode
from foveate.models.reference.batches import Batch
from foveate.tasks.base import DENSE_COLOUR

CLASSES = 80  # outputs for `DENSE_WHAT`, spare ones included


class Learner(nn.Module):
    """The model with the parts that only training needs.

    Attributes:
        model: what ships. tower: the text tower, ships too. visual_projection: CLS -> joint space, ships with the
        tower.
        dense: 4 cells x (class, colour) logits from each patch. temperature: log of the contrast's inverse temperature.
    """

    def __init__(self, model: LlavaForConditionalGeneration, tower: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.model, self.tower = model, tower
        self.visual_projection = nn.Linear(VIT["hidden_size"], JOINT, bias=False)
        self.dense = nn.Linear(VIT["hidden_size"], 4 * (CLASSES + len(DENSE_COLOUR)))
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: Batch, answers: bool) -> dict[str, Tensor]:
        """The losses by name; without `answers` the decoder does not run."""
        patches, cls = seen(self.model, batch.pixels)
        losses = {"dense": self.dense_loss(patches, batch.dense), "contrast": self.contrast(cls, batch.caption)}
        if answers:
            with AttentionRows(self.model, batch) as rows:
                losses["answer"] = F.cross_entropy(*self.answer_logits(patches, batch))
            losses["look"] = rows.loss()
        return losses

    def dense_loss(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of class and colour of each 4 x 4 px cell; background counts a tenth."""
        logits = self.dense(patches).unflatten(-1, (4, -1))
        what, colour = logits.split((CLASSES, len(DENSE_COLOUR)), dim=-1)
        total = patches.new_zeros(())
        for part, target in ((what, labels[..., 0]), (colour, labels[..., 1])):
            weight = part.new_ones(part.shape[-1])
            weight[0] = 0.1
            total = total + F.cross_entropy(part.flatten(0, 2), target.flatten(), weight, ignore_index=-100)
        return total

    def contrast(self, cls: Tensor, caption: Tensor) -> Tensor:
        """Symmetric cross-entropy of pictures against captions inside the batch (CLIP, arXiv 2103.00020)."""
        mask = (caption != self.tower.config.pad_token_id).long()
        text = F.normalize(self.tower(input_ids=caption, attention_mask=mask).text_embeds, dim=-1)
        picture = F.normalize(self.visual_projection(cls), dim=-1)
        logits = picture @ text.T * self.temperature.clamp(max=4.0).exp()
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def answer_logits(self, patches: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and targets at the answer positions: (M, V), (M,)."""
        core, behind = self.model.model, 1 + patches.shape[1]
        places = torch.arange(1, behind, device=patches.device).expand(len(patches), -1)
        picture = core.multi_modal_projector(patches)
        if batch.kept is not None:
            picture = picture.gather(1, batch.kept.unsqueeze(-1).expand(-1, -1, picture.shape[-1]))
            places = places.gather(1, batch.kept)
        prefix = 1 + picture.shape[1]
        words = core.language_model.embed_tokens(batch.text)
        start = core.language_model.embed_tokens(
            torch.full_like(batch.text[:, :1], self.model.config.text_config.bos_token_id)
        )
        embeds = torch.cat([start, picture, words], dim=1)
        hidden = core.language_model(
            inputs_embeds=embeds,
            attention_mask=turn_mask(batch.turn, prefix),
            position_ids=torch.cat([torch.zeros_like(places[:, :1]), places, behind + batch.place], dim=1),
            use_cache=False,
        ).last_hidden_state[:, prefix:]
        wanted = batch.target != -100
        return self.model.lm_head(hidden[wanted]), batch.target[wanted]


def seen(model: LlavaForConditionalGeneration, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What the ViT makes of pictures (B, 3, H, W) or of the frames of videos (B, T, 3, H, W).

    Returns:
        Patches (B, T h w, 96), frame behind frame, and the mean of the frames' CLS (B, 96).
    """
    feature, cls = encode(model.model.vision_tower, pixels.flatten(0, -4))
    patches = feature[:, 1:].reshape(len(pixels), -1, feature.shape[-1])
    return patches, cls.reshape(len(pixels), -1, cls.shape[-1]).mean(1)


class AttentionRows:
    """While open, sees the decoder's attention and compares it with where a person would look.

    Two heads of the layer at a quarter of the depth are to find what the question names, two of the layer at half the
    depth what holds the answer: cross-entropy of their attention at the answer's tokens against the covered patches
    (where things are counted, with a share on the start token).
    The other heads are left alone. Without it a decoder of this size takes several times the pictures before it looks
    anything up.
    """

    HEADS = 2

    def __init__(self, model: LlavaForConditionalGeneration, batch: Batch) -> None:
        self.layers, self.batch, self.prefix = model.model.language_model.layers, batch, batch.looks.shape[-1]
        depth = len(self.layers)
        self.wanted = {depth // 4: (0, 1), depth // 2: (2, 2)}  # layer -> entry of `looks` for each head
        self.picture, self.place = torch.nonzero(batch.target != -100, as_tuple=True)
        self.visible = turn_mask(batch.turn, self.prefix)[self.picture, 0, self.prefix + self.place]
        self.hooks: list[RemovableHandle] = []
        self.parts: list[Tensor] = []

    def __enter__(self) -> AttentionRows:
        for layer, looks in self.wanted.items():
            hook = partial(self.compare, looks=looks)
            self.hooks.append(self.layers[layer].self_attn.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def compare(self, attention: LlamaAttention, args: tuple, kwargs: dict, looks: tuple[int, int]) -> None:
        """Adds the cross-entropy of each answer row whose look is known."""
        states, (cos, sin) = kwargs["hidden_states"], kwargs["position_embeddings"]
        width = self.HEADS * attention.head_dim
        q = (states @ attention.q_proj.weight[:width].T).unflatten(-1, (self.HEADS, -1)).transpose(1, 2)
        k = (states @ attention.k_proj.weight[:width].T).unflatten(-1, (self.HEADS, -1)).transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        asking = q[self.picture, :, self.prefix + self.place]
        rows = torch.einsum("mhd,mhsd->mhs", asking, k[self.picture]) * attention.scaling
        log = rows.float().masked_fill(~self.visible[:, None], -torch.inf).log_softmax(-1)[..., : self.prefix]
        target = self.batch.looks[self.picture, self.place][:, list(looks)]
        known = target.sum(-1) > 0.5
        self.parts.append(-(log * target).sum(-1)[known])

    def loss(self) -> Tensor:
        """The mean over all rows seen; 0 without any."""
        rows = torch.cat(self.parts)
        return rows.sum() / max(len(rows), 1)


def turn_mask(turn: Tensor, prefix: int) -> Tensor:
    """(B, 1, S, S) bool: the picture causally, each turn the picture and its own past; padding sees itself only
    through its diagonal."""
    b, length = turn.shape
    whole = torch.cat([turn.new_full((b, prefix), -2), turn], dim=1)
    size = prefix + length
    causal = torch.ones(size, size, dtype=torch.bool, device=turn.device).tril()
    same = whole[:, :, None] == whole[:, None, :]
    sees = same | (whole == -2)[:, None, :]
    return (causal & sees)[:, None]
