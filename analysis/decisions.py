"""What deciding costs: the gate's decisions, features included, as shares of the uncompressed pass's wall time.

Run it as `python -m foveate.analysis.decisions`. One thread; in every round an uncompressed pass (prefill of one row),
the gate's own run and a walk timed part by part follow each other on a fresh picture and question; shares are ratios of
medians over the rounds. At every stop the controller computes its scores and then takes no compression, so that all
stages at which it has a choice are decided and nothing gets cheaper on the way; a controller of whole plans decides
once, at the start. What a budget's masks remember for each length of question is warm, as it is behind the first
questions of a service. Two models are timed: the reference, and a LLaVA with random weights in the shapes of CLIP-L/336
and of a small decoder, where features cost more and the pass far more. Times of a shared machine would mean nothing, so
none are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor
from transformers import LlavaForConditionalGeneration as Llava

from foveate.controller import Artefact, Controller, Layout, Network, Normalisation, load
from foveate.controller.features import pixel_features, question_features
from foveate.controller.network import HEADS
from foveate.controller.observation import Progress
from foveate.models import load_host
from foveate.models.families.llava import LlavaHost
from foveate.models.features import TOKEN_FEATURES, reveal
from foveate.models.inputs import Row
from foveate.models.masks import STOP_GROUP
from foveate.models.passes import Pass
from foveate.models.reference.processor import CHAT, build_tokenizer
from foveate.plans.plan import STAGES, UNCOMPRESSED
from foveate.plans.portfolio import ActionTable, Portfolio, one_stage_plans
from foveate.serving.deciding import Course, Dials, Driver
from foveate.tasks.registry import iter_samples

TASKS = ("scenes", "reading", "documents", "charts", "digits", "pictures")
LIMITS = {"reference": 0.05, "large": 0.005}
"""Largest share of the uncompressed pass that all decisions may take."""

PARTS = ("masks", "pixels", "question", "block1", "encoder", "layer1", "network")
"""Parts of deciding: legal actions; features of the picture, of the question, at the three stops that look at tokens;
observation, network and choice of every decision."""

VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "patch_size": 14}
DECODER = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 16}
VOCABULARY = 32_000


@dataclass
class Timed:
    """Seconds of each round.

    Attributes:
        full: of the uncompressed pass.
        gate: of all decisions, as the gate counts them.
        parts: of each part of the walk.
    """

    full: list[float] = field(default_factory=list)
    gate: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def share(self, seconds: Sequence[float]) -> float:
        """Median of some seconds over the median uncompressed pass."""
        return statistics.median(seconds) / statistics.median(self.full)


class Clock:
    """Adds up seconds by part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what is inside."""
        begun = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begun


def measure(host: LlavaHost, artefact: Artefact, rounds: int, max_flops: float | None = None) -> Timed:
    """Times passes and decisions in alternation; the first round does not count.

    Args:
        host: the model.
        artefact: of stages or of whole plans.
        rounds: how many count.
        max_flops: hard limit for masks that search; None = no limit.
    Raises:
        RuntimeError: a stage that the controller has a say in was not decided by it.
    """
    controller = Controller(replace(artefact, outside_limit=1.0), network=never(artefact.network))
    driver, dials, found = Driver(host, controller), Dials(controller.lam, max_flops), Timed()
    for number, (row, picture) in enumerate(inputs(host, rounds + 1)):
        if max_flops is not None:
            driver.masks.least(row.shape)
        begun = time.perf_counter()
        Pass(host, [row]).prefill()
        full = time.perf_counter() - begun
        _, (course,), used = driver.run([row], [picture], dials, new_tokens=1)
        if [(stage, choice.is_none) for stage, choice, _ in course.taken] != [(s, True) for s in asked(driver, row)]:
            raise RuntimeError(f"decisions: {course.reason}: not every stage was decided: {course.taken}")
        seconds = walk(driver, row, picture, dials)
        if number:
            found.full.append(full)
            found.gate.append(used)
            for part in PARTS:
                found.parts[part].append(seconds[part])
    return found


def asked(driver: Driver, row: Row) -> tuple[str, ...]:
    """The stages at which the controller has a choice where nothing is compressed; of whole plans, the first alone."""
    if driver.controller.artefact.table is None:
        return STAGES[:1]
    return driver.masks.asked(UNCOMPRESSED, row.shape)


def walk(driver: Driver, row: Row, picture: np.ndarray, dials: Dials) -> dict[str, float]:
    """Seconds of each part of deciding all stages of one row, step by step as the gate does it."""
    masks, controller = driver.masks, driver.controller
    clock, p, groups = Clock(), Pass(masks.host, [row]), {}
    with clock.part("masks"):
        full = masks.full(row.shape)
    with clock.part("pixels"):
        groups["pixels"] = pixel_features(picture)
    with clock.part("question"):
        groups["question"] = question_features(row.question)
    budget = None if dials.max_flops is None else dials.max_flops / full
    whole, stages = controller.artefact.table is None, asked(driver, row)
    for stage in STAGES:
        with clock.part("masks"):
            mask = driver.legal(stage, row.shape, Course(full, dials.max_flops))
        if stage in stages:
            if stage in STOP_GROUP:
                (p.peek if stage == "prefill" else p.peek_encoder)()
                with clock.part(STOP_GROUP[stage]):
                    groups[STOP_GROUP[stage]] = reveal(p, STOP_GROUP[stage])[0]
            with clock.part("network"):
                progress = Progress(p.ledger[0].total / full, 1.0, budget)
                decision = controller.decide_stop(stage, groups, progress, mask, dials.lam)
                controller.plan(decision) if whole else controller.choice(stage, decision)
        p.run_stage(stage, [UNCOMPRESSED])
    return clock.seconds


def never(network: Network) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A network that computes its scores and then prefers no compression, so that every stage is reached."""
    none = (..., 0) if network.kind == "policy" else (..., 0, 0)

    def scores(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, second = network(z)
        first[none] += 1e6
        return first, second

    return scores


def inputs(host: LlavaHost, count: int) -> list[tuple[Row, np.ndarray]]:
    """Rows and the pictures that they were made from, at the model's own size; all different."""
    side = host.grid[1] * host.tower.patch
    pairs = []
    for sample in iter_samples(TASKS, "test", count):
        picture = np.asarray(Image.fromarray(sample.image).resize((side, side), Image.Resampling.BICUBIC))
        pairs.append((host.inputs.row(picture, sample.turns[0].question, 0), picture))
    return pairs


def random_controller(
    host: LlavaHost, portfolio: Portfolio, kind: str = "policy", seed: int = 0, width: int = 64
) -> Artefact:
    """An untrained controller in the shape that training exports: two tanh layers, two heads; "policy" of stages, or
    "regression" of the portfolio's plans with one active stage."""
    table, layout, rng = ActionTable.from_portfolio(portfolio), Layout.of(TOKEN_FEATURES), np.random.default_rng(seed)
    plans = one_stage_plans(portfolio)
    rows, levels = table.shape if kind == "policy" else (len(plans), 1)
    first, second = HEADS[kind]
    sizes = {
        "trunk.0": (width, layout.size),
        "trunk.1": (width, width),
        first: (rows, width),
        second: (rows * levels, width),
    }
    arrays = {f"{name}.weight": rng.standard_normal(size) / size[1] ** 0.5 for name, size in sizes.items()}
    arrays |= {f"{name}.bias": np.zeros(size[0]) for name, size in sizes.items()}
    ones = np.ones(layout.size, np.float32)
    return Artefact(
        layout=layout,
        normalisation=Normalisation(0 * ones, ones, -ones, ones),
        network=Network(kind, (rows, levels), "tanh", {k: v.astype(np.float32) for k, v in arrays.items()}),
        actions=table.to_dict() if kind == "policy" else {"plans": [plan.to_dict() for plan in plans]},
        portfolio=portfolio.to_dict(),
        host=host.name,
        fingerprint=host.fingerprint,
        lam=0.3,
    )


def large_host(tower_layers: int = 24, decoder_layers: int = 12) -> LlavaHost:
    """A LLaVA with random weights: CLIP-L/336 in front of a decoder of width 1024; no text tower, as none ships with
    a LLaVA."""
    torch.manual_seed(0)
    words = build_tokenizer()
    vision = CLIPVisionConfig(image_size=336, num_hidden_layers=tower_layers, **VISION)
    text = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=decoder_layers, **DECODER)
    image = words.convert_tokens_to_ids("<image>")
    model = Llava(LlavaConfig(vision_config=vision, text_config=text, image_token_index=image, image_seq_length=576))
    size = {"height": 336, "width": 336}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False),
        tokenizer=words,
        patch_size=VISION["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    return LlavaHost(model, processor, name="random LLaVA")


def lines(name: str, timed: Timed, limit: float) -> list[str]:
    """The table of one model: each part in percent of the uncompressed pass."""
    shares = {"all decisions": timed.share(timed.gate)} | {part: timed.share(timed.parts[part]) for part in PARTS}
    verdict = "within" if shares["all decisions"] <= limit else "above"
    head = f"{name}: {len(timed.full)} rounds; all decisions are {verdict} {limit:.1%} of the uncompressed pass"
    return [head, *(f"  {part:<14}{share:>9.3%}" for part, share in shares.items())]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables; 1 where a limit is not kept."""
    parser = argparse.ArgumentParser(prog="python -m foveate.analysis.decisions", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="reference", help="reference, or a folder (default: reference)")
    parser.add_argument(
        "--controller", action="append", help="of that model, any number of times; without one, two untrained ones"
    )
    parser.add_argument("--portfolio", default="default", help="of the untrained policies (default: default)")
    parser.add_argument("--rounds", type=int, default=30, help="that count; a tenth of the large model (default: 30)")
    parser.add_argument("--tower-layers", type=int, default=24, help="of the large model; 0 = without it (default: 24)")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.tower_layers < 0:
        parser.error(f"--rounds {args.rounds} must be 1 or more, --tower-layers {args.tower_layers} 0 or more")
    torch.set_num_threads(1)
    portfolio = Portfolio.from_yaml(args.portfolio)
    host = load_host(args.model)
    if args.controller is None:
        known = {f"untrained {kind}": random_controller(host, portfolio, kind) for kind in HEADS}
    else:
        known = {path: load(Path(path), fingerprint=host.fingerprint) for path in args.controller}
    results = []
    for name, artefact in known.items():
        for limit, said in ((None, ""), (1e15, ", hard limit")):
            timed = measure(host, artefact, args.rounds, limit)
            results.append((f"{args.model}, {name}{said}", timed, LIMITS["reference"]))
    if args.tower_layers:
        host = large_host(args.tower_layers)
        depths = f"{args.tower_layers} tower layers, {host.decoder_depth} decoder layers"
        name = f"random LLaVA, {depths}, {host.n_visual} tokens"
        timed = measure(host, random_controller(host, portfolio), max(3, args.rounds // 10))
        results.append((name, timed, LIMITS["large"]))
    for name, timed, limit in results:
        print("\n".join(lines(name, timed, limit)), flush=True)
    return int(any(timed.share(timed.gate) > limit for _, timed, limit in results))


if __name__ == "__main__":
    raise SystemExit(main())
