"""Between tower and decoder: a method acts on a group of views, and each view's state is written anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from foveate.compressors.base import Compressor, Reduction, Resampler, Streamer, apply
from foveate.models.errors import BadInput, CountMismatch, HostError
from foveate.models.host import BASES
from foveate.models.visual import Riders, VisualState, carried, check_grid, decide, leaving, of_slots, unstack

Methods = Compressor | None | Sequence[Compressor | None]
Keeps = float | Sequence[float]
Choices = list[tuple[Compressor | None, float]]


def chosen(stage: str, methods: Methods, keeps: Keeps, blind: Sequence[bool]) -> Choices:
    """(method, ratio) of each row; a ratio of 1, no method, and a blind row are (None, 1).

    Args:
        stage: where they shall act.
        methods: one compressor for all rows or one for each.
        keeps: keep ratios alike, in (0, 1].
        blind: rows without a picture.

    Raises:
        BadInput: another number of methods or ratios than rows, or a ratio outside (0, 1].
        HostError: a kind of compressor that cannot act at this stage.
    """
    b = len(blind)
    listed = list(methods) if isinstance(methods, Sequence) else [methods] * b
    ratios = [float(keeps)] * b if isinstance(keeps, (int, float)) else [float(k) for k in keeps]
    if len(listed) != b or len(ratios) != b:
        raise BadInput(f"{stage}: {len(listed)} compressors and {len(ratios)} ratios for {b} rows")
    found: Choices = []
    for row, (method, ratio) in enumerate(zip(listed, ratios, strict=True)):
        if not 0 < ratio <= 1:
            raise BadInput(f"{stage}, row {row}: keep ratio {ratio} is outside (0, 1]")
        if method is not None and not isinstance(method, BASES[stage]):
            raise HostError(f"{stage}, row {row}: {type(method).__name__} cannot act here")
        found.append((None, 1.0) if method is None or ratio == 1 or blind[row] else (method, ratio))
    return found


def hook_of(method: Compressor | None) -> str | None:
    """Where a method of the stage `projector` acts: "before", "after" or "instead" of it; None = no method."""
    return None if method is None else getattr(method, "hook", "after")


def with_cls(state: VisualState) -> VisualState:
    """CLS as token 0, for methods that may keep it: position -1, at the place of the view's first token."""
    return replace(
        state,
        x=torch.cat([state.cls[None], state.x]),
        size=torch.cat([state.size.new_ones(1), state.size]),
        position=torch.cat([state.position.new_full((1,), -1), state.position]),
        origin=torch.cat([state.origin.amin(0, keepdim=True), state.origin]),
        place=torch.cat([torch.zeros_like(state.place[:1]), state.place]),
        cls=None,
        cls_stays=False,
    )


def act(
    method: Compressor,
    x: Tensor,
    riders: Riders,
    count: int,
    signals: dict[str, Tensor],
    stage: str,
    old: Sequence[VisualState],
) -> list[VisualState]:
    """What a reducer, resampler or streamer makes of a group.

    Args:
        method: who acts.
        x: (b, n, D) features.
        riders: the rest of the tokens.
        count: slots at most.
        signals: as the method asked.
        stage: written into the new states.
        old: the views' states, for what the method does not touch.
    Raises:
        HostError: a broken grid. CountMismatch: an answer that breaks the contract.
    """
    check_grid(method, riders.whole, riders.grid, riders.n)
    if isinstance(method, Resampler | Streamer):
        return _resample(method, x, riders, count, signals, stage, old)
    out: list[VisualState] = list(old)
    for index, reduction in decide(method, riders.tokens(x, signals), count):
        after, order = leaving(carried(riders.at(index), reduction, method.positions))
        like = [old[i] for i in index.tolist()]
        made = unstack(apply(order, apply(reduction, x[index])), after, stage, like)
        if like[0].extra is not None:
            extra = _alike(torch.stack([state.extra for state in like]), reduction, order)
            made = [replace(state, extra=levels) for state, levels in zip(made, extra, strict=True)]
        for i, state in zip(index.tolist(), made, strict=True):
            out[i] = state
    return out


def _alike(extra: Tensor, reduction: Reduction, order: Reduction) -> Tensor:
    """(b, n, L, D) levels, reduced as the features were: (b, k, L, D)."""
    return apply(order, apply(reduction, extra.flatten(2))).unflatten(2, extra.shape[2:])


def _resample(
    method: Resampler | Streamer,
    x: Tensor,
    riders: Riders,
    count: int,
    signals: dict[str, Tensor],
    stage: str,
    old: Sequence[VisualState],
) -> list[VisualState]:
    """New tokens stand for equal shares of the view; without places of their own the prompt is numbered anew."""
    if old[0].extra is not None:
        raise HostError(f"{method.name}: makes new tokens; this model adds features of the old ones in later layers")
    made = method.resample(riders.tokens(x, signals), count)
    b, k = made.position.shape
    if made.x.shape[:2] != (b, k) or b != len(old) or not 1 <= k <= count:
        raise CountMismatch(f"{method.name}: made {tuple(made.x.shape)} for {len(old)} rows of at most {count} tokens")
    index = torch.arange(k, device=x.device).expand(b, k)
    own = riders.whole and bool((made.position >= 0).all())
    keep = own and method.positions != "renumber"
    source = made.position if own else index * riders.n // k
    after = Riders(
        size=(riders.size.sum(1, keepdim=True) / k).expand(b, k) if made.size is None else made.size,
        position=made.position if made.grid_out is None else index,
        origin=riders.origin.gather(1, source),
        place=of_slots(riders.place, source),
        rank=index,
        seed=riders.seed,
        grid=made.grid_out or riders.grid,
        whole=made.grid_out is not None,
        renumber=not keep,
    )
    return unstack(made.x, after, stage, old)
