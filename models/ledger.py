"""What one pass has cost, stage by stage, and the charges that fill it: a pass and its forecast use the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.compressors.base import Compressor, Grid
from foveate.plans.cost import (
    DecoderShape,
    HostShape,
    ViTShape,
    decode_block,
    decoder_block,
    kv_bytes,
    lm_head,
    patch_embed,
    projector,
    query_rows,
    vit_block,
)

KINDS = ("matrix", "other")
EVALUATION = ("score",)
"""Stages that only an evaluation runs: listed by `by_stage`, left out of the totals."""


class Ledger:
    """FLOPs, tokens and KV bytes of one row. A multiply-add is 2 FLOPs.

    Stages of the entries are the six of a plan, "features" and "answer" (generated tokens), and "score" (teacher-forced
    passes over accepted answers, which only an evaluation runs and no total counts). Kind "matrix" is products and
    convolutions; "other" is an estimate of norms, softmax, activations and residuals.

    Attributes:
        tokens: stage -> visual tokens that left it.
        kv_bytes_prefill: bytes of the cache behind the prompt.
        kv_bytes_end: the same after a decode compressor, generated tokens included.
    """

    def __init__(self) -> None:
        self._flops: dict[tuple[str, str, str], int] = {}
        self.tokens: dict[str, int] = {}
        self.kv_bytes_prefill = 0
        self.kv_bytes_end = 0

    def add(self, stage: str, what: str, flops: int, kind: str = "matrix") -> None:
        """Adds FLOPs to the entry (stage, what, kind). Raises: ValueError on an unknown kind or a negative number."""
        if kind not in KINDS or flops < 0:
            raise ValueError(f"ledger entry {stage}/{what}: {flops} FLOPs of kind {kind!r}; kinds: {', '.join(KINDS)}")
        key = (stage, what, kind)
        self._flops[key] = self._flops.get(key, 0) + int(flops)

    @property
    def entries(self) -> list[tuple[str, str, int, str]]:
        """(stage, what, FLOPs, kind) in the order in which they first came."""
        return [(stage, what, flops, kind) for (stage, what, kind), flops in self._flops.items()]

    def by_stage(self, kind: str | None = None) -> dict[str, int]:
        """Stage -> FLOPs, of one kind or of both."""
        out: dict[str, int] = {}
        for stage, _, flops, k in self.entries:
            if kind in (None, k):
                out[stage] = out.get(stage, 0) + flops
        return out

    @property
    def total(self) -> int:
        """FLOPs of both kinds, evaluation left out."""
        return sum(flops for stage, _, flops, _ in self.entries if stage not in EVALUATION)

    @property
    def matrix_total(self) -> int:
        """FLOPs of matrix products and convolutions, evaluation left out."""
        return sum(flops for stage, _, flops, kind in self.entries if kind == "matrix" and stage not in EVALUATION)

    def take(self, other: Ledger, times: int = 1) -> None:
        """Adds all entries of another ledger, several times over."""
        for (stage, what, kind), flops in other._flops.items():
            self.add(stage, what, flops * times, kind)

    def copy(self) -> Ledger:
        """An independent copy."""
        other = Ledger()
        other._flops, other.tokens = dict(self._flops), dict(self.tokens)
        other.kv_bytes_prefill, other.kv_bytes_end = self.kv_bytes_prefill, self.kv_bytes_end
        return other

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        entries = [{"stage": s, "what": w, "flops": f, "kind": k} for s, w, f, k in self.entries]
        kv = {"kv_bytes_prefill": self.kv_bytes_prefill, "kv_bytes_end": self.kv_bytes_end}
        totals = {"total": self.total, "matrix_total": self.matrix_total}
        return {**totals, **kv, "tokens": dict(self.tokens), "entries": entries}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and vars(self) == vars(other)

    __hash__ = None


def method_flops(
    method: Compressor, shape: HostShape, stage: str, n: int, count: int, text: int = 0, grid: Grid | None = None
) -> int:
    """A method's own matrix FLOPs in one call on one row (at `decode`: on one layer with `text` other entries); `grid`
    is that of its tokens, one frame where it is None."""
    vit, decoder = shape.vit, shape.decoder
    projected = stage == "prefill" or (stage == "projector" and getattr(method, "hook", "after") == "after")
    dim = decoder.head_dim if stage == "decode" else decoder.dim if projected else vit.dim * vit.merge
    key_dim = decoder.head_dim if stage == "prefill" else vit.dim // vit.heads
    return method.flops_on(grid or (1, 1, n), n, count, dim, key_dim=key_dim, heads=decoder.kv_heads, text=text)


def vit_mlp(shape: ViTShape, n: int) -> int:
    """FLOPs of the MLP half of a vision block on n rows."""
    return (6 if shape.gated else 4) * n * shape.dim * shape.mlp


def vit_other(shape: ViTShape, n: int, n_mlp: int, pairs: int) -> int:
    """Estimate for a vision block: 5 h of softmax on each pair, 6 d of norm on n rows; 6 d + 8 m on n_mlp rows."""
    return 5 * shape.heads * pairs + 6 * n * shape.dim + n_mlp * (6 * shape.dim + 8 * shape.mlp)


def decoder_other(shape: DecoderShape, n: int, cached: int = 0) -> int:
    """Estimate for one decoder layer: softmax 5 h n (p + n), rotation 3 n (he + ke), norms 10 n d, gate 6 n m."""
    rotation = 3 * n * (shape.query_width + shape.key_width)
    return 5 * shape.heads * n * (cached + n) + rotation + 10 * n * shape.dim + 6 * n * shape.mlp


def charge_embed(ledger: Ledger, shape: HostShape, n: int) -> None:
    """Patch embedding of n tokens."""
    ledger.add("encoder", "patch embedding", patch_embed(shape.vit, n * shape.vit.merge))


def charge_attention(ledger: Ledger, shape: HostShape, n: int, block: int, grid: Grid) -> None:
    """The attention half of a vision block on n tokens (CLS comes on top) of a view with this grid."""
    m, pairs = shape.vit.rows(n), shape.vit.pairs(block, n, grid)
    rest = vit_block(shape.vit, m, window=0) - vit_mlp(shape.vit, m)
    ledger.add("encoder", "blocks", rest + 4 * pairs * shape.vit.dim)
    ledger.add("encoder", "blocks", vit_other(shape.vit, m, 0, pairs), "other")


def charge_mlp(ledger: Ledger, shape: HostShape, n: int) -> None:
    """The MLP half of a vision block on n tokens."""
    m = shape.vit.rows(n)
    ledger.add("encoder", "blocks", vit_mlp(shape.vit, m))
    ledger.add("encoder", "blocks", vit_other(shape.vit, 0, m, 0), "other")


def charge_project(ledger: Ledger, shape: HostShape, n: int) -> None:
    """The projector on n rows, and those of the levels that ride along."""
    times = n * (1 + shape.deepstack)
    ledger.add("projector", "projector", projector(shape, times))
    ledger.add("projector", "projector", 8 * times * shape.projector[1], "other")


def charge_mixture(ledger: Ledger, shape: HostShape, n: int, shown: int) -> None:
    """The projector on a view's n tokens, and a mixture of four of them for each entry where the view shows fewer."""
    charge_project(ledger, shape, n)
    ledger.add("projector", "mixture", 7 * shown * shape.projector[-1] * (shown < n), "other")


def query_rows_of(kinds: Sequence[str], m: int, cls: bool) -> int:
    """Queries that signals of one vision block need, of m rows: all, the CLS row, or none."""
    if {"received_attention", "attention_map"} & set(kinds) or ("cls_attention" in kinds and not cls):
        return m
    return int("cls_attention" in kinds)


def encoder_signal_flops(shape: ViTShape, kinds: Sequence[str], m: int, at_hand: bool) -> int:
    """FLOPs of signals of one vision block.

    Args:
        shape: the tower's.
        kinds: of `compressors.signals.SHAPES`, all of the same block.
        m: rows with a key, CLS included.
        at_hand: the block has just run and its queries and keys are there.
    """
    fresh = 0 if at_hand else 2 * (m + query_rows_of(kinds, m, shape.cls)) * shape.dim**2
    products = sum(2 * query_rows_of([kind], m, shape.cls) * m * shape.dim for kind in kinds)
    return fresh + products


def last_query_flops(shape: DecoderShape, n: int, has_run: bool) -> int:
    """FLOPs of the last prompt row's attention over n entries; a layer that has run has its keys in the cache."""
    return query_rows(shape, n) - (2 * n * shape.dim * shape.key_width if has_run else 0)


def decoder_signal_flops(shape: DecoderShape, kind: str, n: int, visual: int, has_run: bool) -> int:
    """FLOPs of one signal of a decoder layer with n entries, `visual` of them visual; one that has run has its keys."""
    if kind in ("hidden_states", "post_norm"):
        return 0
    if kind in ("visual_keys", "wide_keys"):
        return 0 if has_run else 2 * visual * shape.dim * shape.key_width
    if kind in ("text_attention", "text_peak"):
        keys = 0 if has_run else 2 * n * shape.dim * shape.key_width
        return keys + 2 * (n - visual) * shape.query_width * (shape.dim + n)
    if kind == "mean_query":
        return query_rows(shape, n) + 2 * (n - 1) * shape.dim * shape.query_width
    return last_query_flops(shape, n, has_run and kind == "last_query")


def received_flops(shape: DecoderShape, n: int, queries: int) -> int:
    """FLOPs of the attention that each of n cached keys received from some queries, which are made anew."""
    return 2 * queries * shape.query_width * (shape.dim + n)


def charge_layer(ledger: Ledger, shape: HostShape, n: int) -> None:
    """One decoder layer over n prompt entries."""
    ledger.add("prefill", "layers", decoder_block(shape.decoder, n))
    ledger.add("prefill", "layers", decoder_other(shape.decoder, n), "other")


def charge_tower(
    ledger: Ledger,
    shape: HostShape,
    counts: Sequence[tuple[int, int]],
    grid: Grid,
    method: Compressor | None,
    sites: Mapping[int, int],
) -> None:
    """The tower but block 0's attention, and the method's own work.

    Args:
        ledger: whose.
        shape: of the model.
        counts: tokens entering and leaving each block.
        grid: of the view's tokens when nothing is compressed.
        method: what acts in the tower, or None.
        sites: block -> count there.
    """
    for block, (entering, leaving) in enumerate(counts):
        if block:
            charge_attention(ledger, shape, entering, block, grid)
        charge_mlp(ledger, shape, leaving)
        if sites.get(block, entering) < entering:
            ledger.add("encoder", method.name, method_flops(method, shape, "encoder", entering, sites[block]))


def charge_prefill(
    ledger: Ledger,
    shape: HostShape,
    entries: Sequence[int],
    visual: Sequence[int],
    method: Compressor | None,
    sites: Mapping[int, int],
    cached: Entries | None = None,
) -> None:
    """The decoder but layer 0, the method's own work, and the LM head; all and visual prompt entries in each layer.

    What the caches hold behind it is `cached`; None = what ran.
    """
    for layer in range(1, len(entries)):
        charge_layer(ledger, shape, entries[layer])
        n = visual[0 if method is not None and method.bypass else layer - 1]  # what goes around a layer comes back
        if sites.get(layer, n) < n:
            flops = method_flops(method, shape, "prefill", n, sites[layer])
            ledger.add("prefill", method.name, flops)
    ledger.add("prefill", "head", lm_head(shape.decoder, 1))
    charge_cache(ledger, shape, entries if cached is None else cached)
    ledger.kv_bytes_prefill = ledger.kv_bytes_end


def charge_windows(
    ledger: Ledger,
    shape: HostShape,
    ran: Sequence[tuple[int, int]],
    method: Compressor,
    count: int,
    entries: Entries,
) -> None:
    """The decoder over a prompt that ran call by call, the method's own work, and the LM head.

    Args:
        ledger: whose.
        shape: of the model.
        ran: (entries of a call, entries kept before it).
        method: whose windows.
        count: its summary tokens.
        entries: what each layer's cache holds at last.
    """
    layers = shape.decoder.layers
    for fed, before in ran:
        ledger.add("prefill", "layers", layers * decoder_block(shape.decoder, fed, before))
        ledger.add("prefill", "layers", layers * decoder_other(shape.decoder, fed, before), "other")
    ledger.add("prefill", method.name, method.summary_flops(count))
    ledger.add("prefill", "head", lm_head(shape.decoder, 1))
    charge_cache(ledger, shape, entries)
    ledger.kv_bytes_prefill = ledger.kv_bytes_end


Entries = Sequence[int | Sequence[int]]
"""What a row has in each layer's cache: one number, or one for each head where they differ."""


def widest(entries: int | Sequence[int]) -> int:
    """Entries of the longest head: attention runs over as many in every head."""
    return entries if isinstance(entries, int) else max(entries)


def charge_cache(ledger: Ledger, shape: HostShape, entries: Entries) -> None:
    """The cache as it is now."""
    ledger.kv_bytes_end = kv_bytes(shape.decoder, list(entries), shape.bytes_per_value)


@dataclass(frozen=True)
class Reading:
    """What a token of the answer reads of a cache that stays whole, where a method reselects.

    Attributes:
        entries: of each layer.
        looked_at: entries of the layer whose attention the method goes by: one row of it is made anew for each token.
    """

    entries: tuple[int, ...]
    looked_at: int


def charge_answer(
    ledger: Ledger, shape: HostShape, entries: Entries, generated: int, reading: Reading | None = None
) -> None:
    """Decoding of `generated` tokens behind a cache: the first comes from the prompt's own logits.

    Bytes are those of all `entries`; FLOPs those of what is read (None = all).
    """
    longest, more = [widest(each) for each in (reading.entries if reading else entries)], max(0, generated - 1)
    for step in range(more):
        if reading:
            ledger.add("answer", "signals", received_flops(shape.decoder, reading.looked_at + step + 1, 1))
        ledger.add("answer", "layers", sum(decode_block(shape.decoder, e + step) for e in longest))
        ledger.add("answer", "layers", sum(decoder_other(shape.decoder, 1, e + step) for e in longest), "other")
        ledger.add("answer", "head", lm_head(shape.decoder, 1))
    charge_cache(ledger, shape, [e + more if isinstance(e, int) else [head + more for head in e] for e in entries])


def charge_answers(
    ledger: Ledger, shape: HostShape, entries: Entries, generated: Sequence[int], reading: Reading | None = None
) -> None:
    """Sequences that run side by side, so many tokens each, every one behind a copy of the cache."""
    held = 0
    for each in generated:
        charge_answer(ledger, shape, entries, each, reading)
        held += ledger.kv_bytes_end
    ledger.kv_bytes_end = held


def charge_turn(ledger: Ledger, shape: HostShape, entries: Entries, fed: int) -> None:
    """A later turn of a conversation: `fed` tokens, the answer before it among them, behind a cache; the LM head."""
    longest = [widest(each) for each in entries]
    ledger.add("prefill", "later turns", sum(decoder_block(shape.decoder, fed, e) for e in longest))
    ledger.add("prefill", "later turns", sum(decoder_other(shape.decoder, fed, e) for e in longest), "other")
    ledger.add("prefill", "head", lm_head(shape.decoder, 1))
    charge_cache(ledger, shape, [e + fed if isinstance(e, int) else [head + fed for head in e] for e in entries])


def charge_score(ledger: Ledger, shape: HostShape, entries: Entries, fed: int, reading: Reading | None = None) -> None:
    """One teacher-forced pass of `fed` answer tokens behind a cache: where a method reselects, masks hide what each
    does not read."""
    if reading:
        ledger.add("score", "signals", received_flops(shape.decoder, reading.looked_at + fed, fed))
    ledger.add("score", "layers", sum(decoder_block(shape.decoder, fed, widest(e)) for e in entries))
    ledger.add("score", "head", lm_head(shape.decoder, fed))
