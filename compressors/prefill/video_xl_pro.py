"""Video-XL-Pro's selector: tokens that know their time are held against the prompt's words; the best of them stay."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import gelu

from foveate.compressors.base import Reducer, Reduction, Tokens
from foveate.compressors.choosing import rank
from foveate.compressors.learned import Learned, Projector, Widths
from foveate.compressors.networks import linear_flops
from foveate.compressors.projector.pvc import waves
from foveate.compressors.registry import register
from foveate.compressors.signals import Signal

MOMENT = 32
"""Features of a moment, eight of which tell the time of one frame."""

HEADS = 4

SHARPNESS = 8.0
"""What scores from 0 to 1 are multiplied by where they stand for logits."""


class Network(nn.Module):
    """What words ask for, and what a token reads of its frame's time; at first nothing.

    Args:
        width: D of the decoder's tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Linear(width, width, bias=False)
        self.ask, self.tell = nn.Linear(width, HEADS * MOMENT), nn.Linear(HEADS * MOMENT, width, bias=False)
        nn.init.zeros_(self.tell.weight)

    def spoken(self, words: Tensor) -> Tensor:
        """(W, D) -> (D,)."""
        return gelu(self.words(words)).mean(dim=0)

    def timed(self, x: Tensor, frame: Tensor, frames: int) -> Tensor:
        """Tokens (B, N, D) with the time of their frames (B, N) read into them; -1 = of no frame."""
        moments = waves(frames, x.device).to(x).unflatten(1, (-1, MOMENT))[frame.clamp(min=0)].unsqueeze(2)
        asked = self.ask(x).unflatten(-1, (HEADS, 1, MOMENT))
        weight = ((asked * moments).sum(-1).float() * MOMENT**-0.5).softmax(-1).to(x)  # (B, N, heads, moments)
        read = self.tell((weight.unsqueeze(-1) * moments).sum(-2).flatten(2))
        return x + read.masked_fill((frame < 0).unsqueeze(-1), 0)

    def forward(self, x: Tensor, spoken: Tensor, frame: Tensor, frames: int) -> Tensor:
        """Scores (B, N) of tokens, see `timed`, held against (B, D)."""
        return (self.timed(x, frame, frames) @ spoken.unsqueeze(-1)).squeeze(-1)

    def flops(self, n: int) -> int:
        """Of n tokens."""
        return linear_flops(self.ask, n) + linear_flops(self.tell, n) + 2 * n * self.words.out_features


@register
@dataclass(frozen=True)
class VideoXLPro(Learned, Reducer):
    """Score each visual token, its frame's time read into it, by its mean product with what the words ask for.

    Paper:   Liu et al., 2025, https://arxiv.org/abs/2503.18478
    Code:    https://github.com/VectorSpaceLab/Video-XL, Video-XL-Pro/videoxlpro/videoxlpro/model/llava_arch.py and
             WindowTimeToTokenAttention.py
    Formula: v' = v + O softmax(Q v . m / sqrt(32)) m, in 4 heads, over the 8 moments m of its frame; s = mean over
             words of v' . gelu(W word), from 0 to 1 over the video; the tokens of largest s stay, in order
    Shapes:  hidden_states (B, N, D), spoken (B, D) -> anchor (B, K)
    Cost:    2 w D^2 for w words, 514 N D
    Differs: the code reads a frame's ten words of time, which not all hosts' prompts have; here eight pieces of waves
             tell it, read as they are. It adds s to the tokens that stay, so that scores learn; here these stay what
             they are, multiplied by a 1 that has the gradient of s, and scores learn from the attention that answers
             pay, too. It keeps a share drawn at random, at test too, down to a multiple of 16; here `count` stay, and
             the multiple is an option. All words of the prompt count. Both sides are read as they enter layer 0, and
             tokens leave before layer 1, as every decision here may look at layer 0. Equal scores go to the lower
             index.

    Args:
        multiple: of which the number of tokens that stay is, 16 as published; fewer stay as they are.
        network: trained weights, as `build` shapes them.
    Raises:
        MissingWeights: there is no network.
        ValueError: `multiple` is below 1, or `count` is outside 1..N.
        MissingSignal: the host gave no `hidden_states` or no `spoken`.
    """

    name = "video_xl_pro"
    stages = ("prefill",)
    kinds = frozenset({"hidden_states", "spoken"})
    modality = "video"
    text_guided = True
    rate = 5e-4
    further = ("attended",)
    paper = "Liu et al., 2025, https://arxiv.org/abs/2503.18478"
    fidelity = "paper"

    multiple: int = 1

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"video_xl_pro: multiple {self.multiple} is below 1")

    def build(self, widths: Widths, projector: Projector = ()) -> nn.Module:
        return Network(widths.decoder)

    def signals(self, depth: int) -> frozenset[Signal]:
        return frozenset({Signal("hidden_states", 0), Signal("spoken", 0)})

    def sites(self, n: int, count: int, depth: int) -> list[tuple[int, int]]:
        return [(1, count - count % self.multiple or count)]

    def spoken(self, words: Tensor) -> Tensor:
        """(D,) what the prompt's words (W, D) ask for."""
        return self.loaded.spoken(words.to(self.loaded.words.weight)).to(words)

    def spoken_flops(self, words: int) -> int:
        """Of that."""
        return linear_flops(self.loaded.words, words)

    def scores(self, tokens: Tokens) -> Tensor:
        """(B, N) float32, from 0 to 1 in each row; 0 where all are alike."""
        frames, height, width = tokens.grid
        frame = tokens.position.div(height * width, rounding_mode="floor")
        given = (tokens.signals[kind].float() for kind in ("hidden_states", "spoken"))
        score = self.run(*given, frame, frames)
        low, high = score.aminmax(dim=1, keepdim=True)
        return (score - low) / (high - low).clamp(min=1e-12)

    def logits(self, tokens: Tokens) -> Tensor:
        """(B, N) float32: how surely the answer looks at a token."""
        return SHARPNESS * self.scores(tokens)

    def plan(self, tokens: Tokens, count: int) -> Reduction:
        score = self.scores(tokens)
        stays = rank(score) < count
        anchor = (~stays).long().argsort(dim=1, stable=True)[:, :count]
        if not score.requires_grad:
            return Reduction(anchor)
        into = (stays.cumsum(1) - 1).masked_fill(~stays, -1)
        return Reduction(anchor, into.unsqueeze(-1), (1 + (score - score.detach())).unsqueeze(-1))

    def flops(self, n: int, count: int, dim: int, *, key_dim: int = 0, heads: int = 1, text: int = 0) -> int:
        return self.loaded.flops(n)
