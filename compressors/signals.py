"""Signals: what a method may read besides the tokens, with the shape that a host must deliver.

A host recomputes a signal on demand, from the few block inputs that a pass keeps, and charges its FLOPs to the decision
that asked for it. `layer` is the 0-based block; the encoder's `FEATURE_LAYER` (-1) means the block whose output feeds
the projector. Rows follow the rows of `Tokens.x`, a CLS row included where the method takes one; kinds of `OF_ROW` have
none. Where a method acts at several layers, it is given at each of them the values of the latest block that it asked
for and that is not after that layer (`Compressor.signals_at`).
"""

from __future__ import annotations

from dataclasses import dataclass

FEATURE_LAYER = -1

RECENT = 32
"""Prompt entries at the end whose attention counts as recent."""

LEVELS = 4
"""Evenly spaced blocks of the tower that `tower_levels` tells of."""

SHAPES: dict[str, str] = {
    # encoder
    "cls_attention": "(B, H, N) softmax row of the CLS query in one ViT block, its entry on each token; an encoder "
    "without CLS may give the attention received, mean over heads and queries, as one head",
    "received_attention": "(B, N) attention received in one ViT block, mean over heads and queries",
    "attention_map": "(B, N, N) softmax attention in one ViT block, mean over heads: entry [i, j] is what token i pays "
    "token j; CLS has neither row nor column, and rows are not normalised again without it",
    "keys": "(B, N, d) keys of one ViT block, mean over heads",
    "block_states": "(B, N, C) states of the tokens behind one ViT block, for methods that act behind the tower",
    "cls_states": "(B, N, C) state behind one ViT block of the CLS of the frame that each token shows; without CLS, or "
    "where the connector merges patches, the mean of the frame's tokens there",
    "features": "(B, N, C) the tokens as they come to the projector, for methods that act behind it",
    "text_similarity": "(B, N) cosine of each token, projected by the text tower's partner, with the question's vector",
    "question": "(B, P) the question's vector itself, of length 1, as the text tower gives it",
    "phrase_similarity": "(B, 3, N) largest cosine of each token with the question's entities, with its actions, and "
    "with the whole of it, as `phrases.parse` and `phrases.phrase_similarity` make them; -inf where it has none",
    # decoder
    "last_query": "(B, H, N) softmax row of the last prompt token in one decoder layer, its entry on each visual token",
    "unrotated_query": "(B, H, N) the same with neither the query nor the keys rotated: as if places did not matter",
    "mean_query": "(B, H, N) softmax row of the mean query of the entries up to the last visual one, over these, "
    "neither it nor their keys rotated, in one decoder layer; its entry on each visual token",
    "visual_keys": "(B, N, d) keys of each visual token in one decoder layer, rotated as cached, mean over KV heads",
    "wide_keys": "(B, N, d) the same with the KV heads side by side",
    "hidden_states": "(B, N, d) each visual token at the input of one decoder layer",
    "post_norm": "(B, N, d) each visual token as the MLP of one decoder layer reads it, which must run before",
    "text_attention": "(B, 2, N) attention on each visual token from the prompt's words in one decoder layer, mean "
    "over heads: the sum over words, and the largest",
    "text_peak": "(B, N) largest attention on each visual token in one decoder layer over all heads and the words "
    "behind the last visual token",
    "glimpse_query": "(B, H, N) logarithm of the attention that a method's own token, read behind the prompt, pays "
    "each visual token in one decoder layer; the method's `glimpse` says what it is and what each layer adds to it",
    "spoken": "(B, P) what a method's own `spoken` makes of all words of the prompt as they enter one decoder layer",
    "tower_levels": "(B, 4, N, C) what evenly spaced blocks of the tower made of each visual token, the last block "
    "first; zero for a token without a place",
    "cls_rank": "(B, N) share of the tokens that left the encoder to which CLS paid more attention, in its last block, "
    "than to each visual token: 0 for the one it looked at most; 1 for a token without a place",
    "frame_vectors": "(B, N, d) mean of all tokens of the frame that a token shows, as they left the encoder",
    "frame_similarity": "(B, N) cosine of this mean, projected by the text tower's partner, with the question's vector",
    "accumulated_attention": "(B, K, S) attention received by each cached key, summed over queries and group's heads",
    "recent_attention": "(B, K, S) attention received by each cached key from the last `RECENT` prompt entries, mean "
    "over these and the group's heads",
    "survivors": "(B, S) 1 for each cached entry that the last decoder layer has too, else 0",
    "answer_attention": "(B, S) attention that one token of the answer pays each visual entry in one decoder layer, "
    "mean over heads; 0 for text and for what that layer has not; for methods that reselect",
    "frame_relevance": "(B, S) mean attention that the last `RECENT` prompt entries pay, in one decoder layer, to the "
    "entries of the frame that each cached entry shows; 0 for text",
}
"""Kind of signal -> shape and meaning."""

VECTORS = frozenset(kind for kind, shape in SHAPES.items() if shape.startswith(("(B, N, d)", "(B, N, C)")))
"""Kinds with a vector for each token, which follows it through merges as its features do."""

OF_ROW = frozenset(kind for kind, shape in SHAPES.items() if shape.startswith("(B, P)"))
"""Kinds with one vector for the whole row, whatever becomes of its tokens."""


@dataclass(frozen=True)
class Signal:
    """One request: which kind, and in which block it is read.

    Args:
        kind: a key of `SHAPES`.
        layer: 0-based block, resolved for this model's depth, or `FEATURE_LAYER`.
        tag: tells apart two requests of one kind that a method reads in one call ("middle", "deep").
    """

    kind: str
    layer: int = FEATURE_LAYER
    tag: str = ""

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise ValueError(f"unknown signal kind {self.kind!r}; known: {', '.join(sorted(SHAPES))}")

    @property
    def key(self) -> str:
        """Where the values stand in `Tokens.signals`: the kind, with the tag behind a dot where there is one."""
        return f"{self.kind}.{self.tag}" if self.tag else self.kind


class MissingSignal(ValueError):
    """A method asked for a signal that the host did not give; the message names the method and the kind."""
