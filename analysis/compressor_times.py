"""What choosing costs: every method alone, signals apart, as a share of one ViT-L block that is timed in the same run.

One core, one picture of 24 x 24 tokens of width 1024, one call from all tokens to the count. All methods take turns in
every round, the block among them, so that whatever the machine does to one it does to all; what counts is the time
that the one thread was given, and the median over the rounds. Absolute times of a shared machine would mean nothing.
Run it as `foveate bench-compressors`.
"""

from __future__ import annotations

import csv
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

import foveate.compressors  # noqa: F401  (fills the registry)
from foveate.analysis.machine import in_words, machine
from foveate.compressors.base import STAGES, Compressor, Reducer, Resampler
from foveate.compressors.learned import Learned, on_trial
from foveate.compressors.registry import COMPRESSORS, make
from foveate.compressors.tokens import Grid, Tokens
from foveate.compressors.trial import for_method, random_tokens
from foveate.plans.plan import keep_count
from foveate.policies.export import library_versions

PICTURE, VIDEO = (1, 24, 24), (4, 12, 12)
"""Grids of 576 tokens."""

ON_VIDEO = frozenset({"egoprune"})
"""Methods that take pictures too, but have something to do between frames alone."""

WIDTH, HEADS, MLP, KEY_DIM, BLOCK_TOKENS = 1024, 16, 4096, 64, 577
KEEPS = (0.5, 0.11)
TIMED = ("encoder", "outside", "projector", "prefill")
BARS = {"scores": 0.05, "pairs": 0.20}
"""Kind of method -> largest share of a block that its choosing may take; others have no bar."""

KINDS = {
    "scores": "scores tokens one by one and sorts",
    "pairs": "graphs, matching, clustering, picks one by one: looks at pairs of tokens",
    "network": "runs a learned network: no bar",
}
BETWEEN = 8
"""Calls between two runs of the block."""


@dataclass(frozen=True)
class Timing:
    """One method at one ratio.

    Attributes:
        stage, method: which.
        keep, count: ratio asked for, and tokens that the call gives at most: the nearest reachable number below.
        kind: see `KINDS`.
        operations: tensor operations of the call.
        share: of the block's time, median over rounds. low, high: its quartiles.
    """

    stage: str
    method: str
    keep: float
    count: int
    kind: str
    operations: int
    share: float
    low: float
    high: float

    @property
    def bar(self) -> float | None:
        """Largest share that its kind may take."""
        return BARS.get(self.kind)

    @property
    def verdict(self) -> str:
        """In words."""
        if self.bar is None:
            return "no bar"
        return f"{'within' if self.share <= self.bar else 'above'} {self.bar:.0%}"


@dataclass
class Case:
    """One call to be timed, and its shares so far."""

    stage: str
    method: Compressor
    keep: float
    count: int
    call: Callable[[], Any]
    operations: int = 0
    shares: list[float] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        """Of the registry."""
        return self.stage, self.method.name

    def timing(self, kind: str) -> Timing:
        """What the rounds say."""
        quartiles = [float(np.quantile(self.shares, q)) for q in (0.5, 0.25, 0.75)]
        return Timing(*self.key, self.keep, self.count, kind, self.operations, *quartiles)


class Operations(TorchDispatchMode):
    """Counts tensor operations while it is entered."""

    number = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.number += 1
        return function(*args, **(kwargs or {}))


def kind_of(method: Compressor) -> str:
    """A key of `KINDS`, read off what the method does. How many operations that takes frees none from its bar."""
    if isinstance(method, Learned):
        return "network"
    once, twice = (method.flops_on((1, 32, n // 32), n, n // 4, WIDTH, key_dim=KEY_DIM) for n in (512, 1024))
    return "pairs" if twice > 3 * once or "attention_map" in method.kinds else "scores"


def patches(grid: Grid, dim: int, seed: int, side: int = 4) -> Tensor:
    """(1, N, dim) features as a picture has them: alike within areas of side x side tokens, each one with a texture of
    its own; in a video the camera pans by `side` columns a frame, and every frame has its own noise."""
    t, h, w = grid
    width, generator = w + side * (t - 1), torch.Generator().manual_seed(seed)
    areas = torch.randn(-(-h // side), -(-width // side), dim, generator=generator)
    world = areas.repeat_interleave(side, dim=0).repeat_interleave(side, dim=1)[:h, :width]
    world = world + 0.3 * torch.randn(h, width, dim, generator=generator)
    seen = torch.stack([world[:, side * frame : side * frame + w] for frame in range(t)])
    return (seen + 0.1 * torch.randn(seen.shape, generator=generator)).view(1, -1, dim)


def tokens_of(grid: Grid, cls: bool, seed: int) -> Tokens:
    """One row of tokens with every signal; CLS, where a method takes it, is one row more."""
    x, keys = patches(grid, WIDTH, seed), patches(grid, KEY_DIM, seed + 1)
    if cls:
        x, keys = (torch.cat([values.mean(dim=1, keepdim=True), values], dim=1) for values in (x, keys))
    made = partial(random_tokens, n=x.shape[1], dim=WIDTH, grid=grid, cls=cls, seed=seed, heads=HEADS, key_dim=KEY_DIM)
    return made(x=x, keys=keys, visual_keys=keys)


def block(seed: int) -> Callable[[], Tensor]:
    """A call that runs one block of ViT-L on 577 tokens: fused attention, float32, random weights."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (3 * WIDTH, WIDTH), (WIDTH, WIDTH), (MLP, WIDTH), (WIDTH, MLP)
    qkv, out, up, down = (torch.randn(shape, generator=generator) * 0.02 for shape in shapes)
    biases = [torch.zeros(shape[0]) for shape in shapes]
    x = torch.randn(1, BLOCK_TOKENS, WIDTH, generator=generator)

    def run() -> Tensor:
        heads = linear(layer_norm(x, (WIDTH,)), qkv, biases[0]).view(1, BLOCK_TOKENS, 3, HEADS, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = x + linear(mixed, out, biases[1])
        return y + linear(gelu(linear(layer_norm(y, (WIDTH,)), up, biases[2])), down, biases[3])

    return run


def cases(
    stages: Sequence[str] = TIMED, methods: Sequence[str] | None = None, keeps: Sequence[float] = KEEPS, seed: int = 0
) -> list[Case]:
    """Every registered reducer and resampler of some stages, at every ratio; learned ones untrained."""
    tokens: dict[tuple[Grid, bool], Tokens] = {}
    found = []
    for stage, name in sorted(COMPRESSORS, key=lambda key: (STAGES.index(key[0]), key[1])):
        cls = COMPRESSORS[stage, name]
        chosen = stage in stages and (methods is None or name in methods)
        if not chosen or not issubclass(cls, Reducer | Resampler):
            continue
        grid = VIDEO if cls.modality == "video" or name in ON_VIDEO else PICTURE
        method = on_trial(make(stage, name), grid, WIDTH)
        if (grid, cls.takes_cls) not in tokens:
            tokens[grid, cls.takes_cls] = tokens_of(grid, cls.takes_cls, seed)
        own, reachable = for_method(tokens[grid, cls.takes_cls], method), list(method.reachable(grid))
        for keep in keeps:
            wanted = keep_count(math.prod(grid), keep)
            count = max((each for each in reachable if each <= wanted), default=reachable[0])
            act = method.reduce if isinstance(method, Reducer) else method.resample
            found.append(Case(stage, method, keep, count, partial(act, own, count)))
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch works in this thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(call: Callable[[], Any]) -> float:
    """Time that this thread was given for a call."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def measure(
    listed: Sequence[Case], rounds: int = 15, seed: int = 0, advance: Callable[[int], None] = lambda n: None
) -> list[Timing]:
    """Times calls in turns, the block after every few of them.

    Args:
        listed: what to time.
        rounds: that count, behind one that warms up and counts operations.
        seed: of the block's weights.
        advance: called behind every round.
    """
    vit = block(seed)
    with one_thread(), torch.inference_mode():
        vit()
        for case in listed:
            with Operations() as counted:
                case.call()
            case.operations = counted.number
        advance(1)
        for _ in range(rounds):
            blocks, spent = [], []
            for number, case in enumerate(listed):
                if number % BETWEEN == 0:
                    blocks.append(seconds(vit))
                spent.append(seconds(case.call))
            for case, each in zip(listed, spent, strict=True):
                case.shares.append(each / statistics.median(blocks))
            advance(1)
    return [case.timing(kind_of(case.method)) for case in listed]


def about(rounds: int, seed: int) -> dict[str, Any]:
    """What the figures depend on besides the code."""
    sizes = f"one ViT-L block: {BLOCK_TOKENS} tokens, width {WIDTH}, {HEADS} heads, MLP {MLP}, float32, fused attention"
    input = f"one picture of {math.prod(PICTURE)} tokens of width {WIDTH}, float32, one thread"
    return {
        "seed": seed,
        "rounds": rounds,
        "unit": sizes,
        "input": input,
        "machine": machine(),
        "versions": library_versions(("torch", "numpy")) | {"python": platform.python_version()},
    }


def markdown(timings: Sequence[Timing], header: Mapping[str, Any]) -> str:
    """The page: what was measured on what, and a line for each method and ratio."""
    lines = [
        "# What choosing costs",
        "",
        f"Made by `foveate bench-compressors`: {header['input']}; signals apart; shares of {header['unit']}, timed in",
        f"the same run. Median (quartiles) of {header['rounds']} rounds, seed {header['seed']}; {header['machine']};",
        f"{in_words(header['versions'])}. A method that acts in several blocks is called once, from all tokens to the",
        "count.",
        "",
        *(f"* **{kind}**: {text}{bar_of(kind)}" for kind, text in KINDS.items()),
        "",
        "| stage | method | keep | tokens | kind | operations | share of a block, % | verdict |",
        "|---|---|---:|---:|---|---:|---:|---|",
    ]
    for t in timings:
        share = f"{100 * t.share:.2f} ({100 * t.low:.2f}-{100 * t.high:.2f})"
        cells = (t.stage, t.method, t.keep, t.count, t.kind, t.operations, share, t.verdict)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def bar_of(kind: str) -> str:
    """Its bar in words."""
    return f"; bar {BARS[kind]:.0%}" if kind in BARS else ""


def write(timings: Sequence[Timing], header: Mapping[str, Any], out: Path) -> None:
    """`compressors.md`, and `compressors.csv` with the header in a comment."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "compressors.md").write_text(markdown(timings, header), encoding="utf-8")
    with (out / "compressors.csv").open("w", newline="", encoding="utf-8") as file:
        file.write("".join(f"# {key}: {value}\n" for key, value in header.items()))
        writer = csv.writer(file)
        entries = [entry(timing) for timing in timings]
        writer.writerow(entries[0])
        writer.writerows(each.values() for each in entries)


def entry(timing: Timing) -> dict[str, Any]:
    """A timing as plain data, its verdict with it."""
    return asdict(timing) | {"bar": timing.bar, "verdict": timing.verdict}
