"""Perspective maps between two token grids, from the tokens that they share. Knows tensors only, in float64.

Points are (column, row) in patches, the centre of the first patch at (0, 0); a frame of h x w patches covers
-1/2 .. w - 1/2 by -1/2 .. h - 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.compressors.chance import uniform
from foveate.compressors.choosing import rows

TRIALS, TOLERANCE, FEWEST = 500, 0.75, 8
"""Random samples, patches that a match may be off, and matches that a map needs."""


def centres(height: int, width: int, device: torch.device) -> Tensor:
    """(h w, 2) the centres of all patches, in raster order."""
    index = torch.arange(height * width, device=device)
    return torch.stack([index % width, index // width], dim=-1).double()


def corners(height: int, width: int, device: torch.device) -> Tensor:
    """(4, 2) the corners of a frame, in turn."""
    sides = [(-0.5, -0.5), (width - 0.5, -0.5), (width - 0.5, height - 0.5), (-0.5, height - 0.5)]
    return torch.tensor(sides, dtype=torch.float64, device=device)


def mapped(m: Tensor, points: Tensor) -> Tensor:
    """Points (..., P, 2) under maps (..., 3, 3); what lies on the horizon or behind it is infinitely far."""
    place, ahead = _cast(m, points)
    return place.masked_fill(~ahead.unsqueeze(-2), torch.inf).mT


def _cast(m: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and rows (..., 2, P) of mapped points, and (..., P) bool whether they lie before the horizon."""
    x, y = points.mT.unsqueeze(-3).unbind(-2)  # (..., 1, P)
    rows = (m[..., 0, None] * x).add_(m[..., 1, None] * y).add_(m[..., 2, None])  # (..., 3, P)
    ahead = rows[..., 2, :] > 1e-9
    return rows[..., :2, :] / rows[..., 2:, :].masked_fill(~ahead.unsqueeze(-2), 1), ahead


def through(source: Tensor, target: Tensor) -> Tensor:
    """The map (..., 3, 3) that takes four points (..., 4, 2) to four others, scaled as by `fitted`.

    With a, b the points in homogeneous coordinates it is sum over i = 1, 2, 3 of (mu_i / lambda_i) b_i (dual a_i)^T,
    where a_4 = sum lambda_i a_i and b_4 = sum mu_i b_i. Three points in a line give a map that is not sound.
    """
    a, b = (pad(points, (0, 1), value=1.0) for points in (source, target))
    (dual, lam), (_, mu) = _frame(a), _frame(b)
    weight = mu * lam.roll(1, dims=-1) * lam.roll(-1, dims=-1)  # mu / lambda, times all lambda
    m = ((weight.unsqueeze(-1) * b[..., :3, :]).unsqueeze(-1) * dual.unsqueeze(-2)).sum(dim=-3)
    return _scaled(m / m.abs().amax(dim=(-2, -1), keepdim=True).clamp(min=1e-300))


def _frame(points: Tensor) -> tuple[Tensor, Tensor]:
    """Of four points (..., 4, 3): the duals (..., 3, 3) of the first three, and their products with the fourth."""
    p = points[..., :3, :]
    dual = torch.linalg.cross(p.roll(-1, dims=-2), p.roll(-2, dims=-2))
    return dual, (dual * points[..., 3:, :]).sum(dim=-1)


def _scaled(m: Tensor) -> Tensor:
    """With 1 as its last entry, where that is not 0."""
    last = m[..., 2:, 2:]
    return torch.where(last.abs() > 1e-9, m / last, m)


def fitted(source: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The map (..., 3, 3) that takes source to target points (..., P, 2), by the normalised direct linear transform.

    Scaled so that its last entry is 1, where that is not 0. Points with weight (..., P) 0 do not count; where the
    others do not fix a map, it is some map.
    """
    (u, from_source), (v, to_target) = _normalised(source, weight), _normalised(target, weight)
    one, zero = torch.ones_like(u[..., 0]), torch.zeros_like(u[..., 0])
    (x, y), (p, q) = u.unbind(-1), v.unbind(-1)
    first = torch.stack([x, y, one, zero, zero, zero, -p * x, -p * y, -p], dim=-1)
    second = torch.stack([zero, zero, zero, x, y, one, -q * x, -q * y, -q], dim=-1)
    rows = torch.cat([first, second], dim=-2) * torch.cat([weight, weight], dim=-1).unsqueeze(-1)
    square = (rows.unsqueeze(-1) * rows.unsqueeze(-2)).sum(dim=-3)  # (..., 9, 9)
    m = torch.linalg.eigh(square).eigenvectors[..., 0].unflatten(-1, (3, 3))  # of the smallest eigenvalue
    return _scaled(_product(_inverse(to_target), _product(m, from_source)))


def _normalised(points: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Points with mean 0 and mean distance sqrt(2), and the map that makes them so."""
    total = weight.sum(-1, keepdim=True).clamp(min=1)
    mean = (points * weight.unsqueeze(-1)).sum(-2) / total
    away = points - mean.unsqueeze(-2)
    scale = 2**0.5 / ((away.norm(dim=-1) * weight).sum(-1, keepdim=True) / total).clamp(min=1e-9)
    m = torch.zeros(*points.shape[:-2], 3, 3, dtype=points.dtype, device=points.device)
    m[..., 0, 0], m[..., 1, 1], m[..., 2, 2] = scale[..., 0], scale[..., 0], 1
    m[..., :2, 2] = -scale * mean
    return away * scale.unsqueeze(-1), m


def _product(a: Tensor, b: Tensor) -> Tensor:
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(dim=-2)


def _inverse(m: Tensor) -> Tensor:
    """Of a scaling and shift as `_normalised` makes it."""
    scale = 1 / m[..., 0, 0]
    out = torch.zeros_like(m)
    out[..., 0, 0], out[..., 1, 1], out[..., 2, 2] = scale, scale, 1
    out[..., :2, 2] = -m[..., :2, 2] * scale.unsqueeze(-1)
    return out


def mutual(likeness: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """(B, n) the token of another frame that each is most like, and (B, n) bool: each is that one's favourite too.

    Args:
        likeness: (B, n, n) cosines, rows of the one frame, columns of the other.
        threshold: a match's cosine lies above it.
    """
    best, to = likeness.max(dim=2)
    back = likeness.argmax(dim=1)
    index = torch.arange(to.shape[1], device=to.device)
    return to, (back.gather(1, to) == index) & (best > threshold)


def estimated(likeness: Tensor, threshold: float, height: int, width: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """The map from one frame into another, by the largest set of matches that agree.

    Args:
        likeness: (B, n, n) cosines, rows of the frame to map, columns of the other; n = height * width.
        threshold: cosine above which mutual nearest neighbours are matches.
        height: of both grids.
        width: of both grids.
        seed: (B,) int64, for the samples.
    Returns:
        (B, 3, 3) maps, and (B,) bool: enough matches agree and the map is no degenerate one. Elsewhere it is the
        identity.
    """
    b = likeness.shape[0]
    points = centres(height, width, likeness.device)
    to, matched = mutual(likeness, threshold)
    number = matched.sum(dim=-1)
    identity = torch.eye(3, dtype=torch.float64, device=points.device)
    if bool((number < FEWEST).all()):
        return identity.repeat(b, 1, 1), number >= FEWEST
    listed = (~matched).long().argsort(dim=-1, stable=True)[:, : int(number.max())]  # (B, M) the matches first
    source, target, matched = points[listed], points[to.gather(1, listed)], matched.gather(1, listed)
    draw = uniform(seed.view(b, 1), torch.arange(TRIALS * 4, device=seed.device))
    pick = (draw * number.clamp(min=1).unsqueeze(-1)).long()  # (B, TRIALS * 4)
    maps = through(*(rows(ends, pick).view(b, TRIALS, 4, 2) for ends in (source, target)))
    agreed = _agreed(maps, source.unsqueeze(1), target.unsqueeze(1), matched.unsqueeze(1))  # (B, TRIALS, M)
    agreed = agreed & _sound(maps, height, width).unsqueeze(-1)
    best = agreed.sum(dim=-1).argmax(dim=-1)
    chosen = agreed[torch.arange(b, device=best.device), best]
    refined = fitted(source, target, chosen.double())
    refined = (refined * 2.0**30).round() * 2.0**-30  # sums may round otherwise in another batch
    agreed = _agreed(refined, source, target, matched)
    good = (chosen.sum(-1) >= FEWEST) & (agreed.sum(-1) >= FEWEST) & _sound(refined, height, width)
    return torch.where(good.view(b, 1, 1), refined, identity), good


def _agreed(m: Tensor, source: Tensor, target: Tensor, matched: Tensor) -> Tensor:
    place, ahead = _cast(m, source)
    across, down = place.sub_(target.mT).square_().unbind(-2)
    return matched & ahead & (across + down < TOLERANCE**2)


def _sound(m: Tensor, height: int, width: int) -> Tensor:
    """(...) bool: the map keeps the frame a convex quadrilateral, not mirrored and not flat."""
    frame = corners(height, width, m.device)
    quad = mapped(m, frame)
    side = quad.roll(-1, dims=-2) - quad
    after = side.roll(-1, dims=-2)
    turns = side[..., 0] * after[..., 1] - side[..., 1] * after[..., 0]
    return quad.isfinite().all(-1).all(-1) & (turns > 1e-3).all(-1)


def overlap(quad: Sequence[Sequence[float]], height: int, width: int) -> tuple[float, float]:
    """Area that a convex quadrilateral shares with a frame: as a share of the frame, and of the two together."""
    low, high = (-0.5, -0.5), (width - 0.5, height - 0.5)
    polygon = [tuple(point) for point in quad]
    own = _area(polygon)
    for axis in (0, 1):
        polygon = _clipped(polygon, axis, low[axis], 1)
        polygon = _clipped(polygon, axis, high[axis], -1)
    shared, frame = _area(polygon), float(width * height)
    return shared / frame, shared / (own + frame - shared)


def _area(polygon: Sequence[Sequence[float]]) -> float:
    pairs = zip(polygon, [*polygon[1:], *polygon[:1]], strict=True)
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)) / 2


def _clipped(polygon: list[tuple[float, ...]], axis: int, limit: float, sign: int) -> list[tuple[float, ...]]:
    """The part of a polygon on one side of a line: sign * (coordinate - limit) >= 0."""
    out = []
    for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        inside, leaves = sign * (a[axis] - limit) >= 0, sign * (b[axis] - limit) < 0
        if inside:
            out.append(a)
        if inside == leaves and a[axis] != b[axis]:  # the edge crosses the line
            t = (limit - a[axis]) / (b[axis] - a[axis])
            out.append(tuple(p + t * (q - p) for p, q in zip(a, b, strict=True)))
    return out
