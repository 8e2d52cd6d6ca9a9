"""Videos in the environment, in batches and in tables: what is legal, what is seen of them, what is on the bill."""

import dataclasses

import numpy as np
import pytest

from foveate.controller.features import PIXEL_FEATURES
from foveate.controller.motion import TIME_FEATURES, shown_features
from foveate.envs.compression import CompressionEnv
from foveate.envs.inputs import Input, ListSource
from foveate.plans import UNCOMPRESSED, Choice, Plan, Portfolio
from foveate.policies.standard import Standard
from foveate.policies.views import vectors
from foveate.rollouts.replay import fill, legal_plans
from foveate.rollouts.shard import Setup
from foveate.rollouts.table_env import TableVecEnv
from foveate.rollouts.vec import BatchVecEnv
from foveate.tasks.clip import Clip

FEWER = Plan.of(input=("frames", 0.5))
PORTFOLIO = Portfolio(
    "films",
    {
        "input": (Choice("frames", 0.5), Choice("downsample", 0.25)),
        "outside": (Choice("visionzip", 0.5),),
        "projector": (Choice("meteor", 0.5),),
    },
    max_active_stages=1,
)
FREE = {"lam": 0.5, "budget": None}


@pytest.fixture(scope="module")
def films(inputs):
    """Two videos of four frames that move."""
    made = []
    for number, still in enumerate(inputs[:2]):
        frames = np.stack([np.roll(still.image, 4 * t * (number + 1), axis=1) for t in range(4)])
        made.append(dataclasses.replace(still, id=f"film/test/{number}#0", image=Clip.of(frames, 2.0), regime="film"))
    return made


@pytest.fixture(scope="module")
def both(inputs, films):
    return [*films, inputs[2]]


def legal(env, index):
    env.reset(options={**FREE, "index": index})
    m, r = np.nonzero(env.episode.mask())
    return {env.table.decode("input", *pair).method for pair in zip(m.tolist(), r.tolist(), strict=True)}


def test_methods_for_videos_are_legal_on_videos_alone(host, both):
    env = CompressionEnv(host, PORTFOLIO, both)
    assert legal(env, 0) == {"none", "frames", "downsample"} and legal(env, 2) == {"none", "downsample"}
    action = np.array(env.table.encode(Choice("frames", 0.5), "input"))
    with pytest.raises(ValueError, match=r"frames@0.5, is not legal: .*frames: is for videos"):
        env.step(action)
    env.reset(options={**FREE, "index": 0})
    env.step(action)
    p = host.open([both[0].image], [both[0].question]).run(FEWER)
    assert env.episode.plan == FEWER and env._pass.counts["input"] == p.counts["input"] == [32]


def test_what_moves_is_part_of_the_observation_and_zero_for_pictures(host, both, inputs):
    env = CompressionEnv(host, PORTFOLIO, both)
    place = env.layout.slices["pixels"]
    film, still = (env.reset(options={**FREE, "index": i})[0]["vector"][place] for i in (0, 2))
    assert np.allclose(film[1:], shown_features(both[0].image)) and film[1 + len(PIXEL_FEATURES)] > 0
    assert not still[1 + len(PIXEL_FEATURES) :].any() and len(still) == 1 + len(PIXEL_FEATURES + TIME_FEATURES)
    assert not CompressionEnv(host, PORTFOLIO, inputs[:2]).layout.video


@pytest.fixture(scope="module")
def table(host, films, tmp_path_factory):
    return fill(host, films, PORTFOLIO, tmp_path_factory.mktemp("t") / "films.parquet", progress=False)


def test_a_table_of_videos_has_plans_for_videos_and_their_cost(host, films, table):
    shape = host.open([films[0].image], [films[0].question]).shapes[0]
    assert FEWER in table.plans and FEWER not in legal_plans(host, PORTFOLIO)
    assert FEWER not in legal_plans(host, PORTFOLIO, [shape, host.prompt_shape(4)])
    assert table.cost[0, table.column[FEWER]] == host.forecast(FEWER, shape, 4).total
    assert table.group_names["pixels"] == PIXEL_FEATURES + TIME_FEATURES
    assert np.allclose(table.groups["pixels"][1], shown_features(films[1].image))


def test_table_and_live_environment_show_the_same(host, films, table):
    fast = TableVecEnv(table, groups=2, k=1, seed=3)
    live = BatchVecEnv(Setup(PORTFOLIO, ListSource(films), groups=2, k=1, seed=3), host)
    a, b = fast.reset(), live.reset()
    assert np.allclose(a["vector"], b["vector"], atol=1e-5) and np.array_equal(a["mask"], b["mask"])


def test_pictures_beside_videos_have_zeros_in_a_table_and_a_table_of_pictures_none(host, both, inputs, tmp_path):
    plans = [UNCOMPRESSED, Plan.of(outside=("visionzip", 0.5))]
    mixed = fill(host, both, plans, tmp_path / "mixed.parquet", shard=1, progress=False)
    assert mixed.groups["pixels"].shape == (3, 29) and not mixed.groups["pixels"][2, 24:].any()
    still = fill(host, inputs[:2], plans, tmp_path / "still.parquet", progress=False)
    assert still.groups["pixels"].shape == (2, 24)
    layout = Standard.fit(mixed).layout
    assert layout.video and vectors(still, layout, ("pixels",))[:, layout.slices["pixels"]][:, 25:].sum() == 0
    later = dataclasses.replace(both[0], image=dataclasses.replace(both[0].image, duration=9.0))
    with pytest.raises(ValueError, match="holds a table of other inputs"):
        fill(host, [later, *both[1:]], plans, tmp_path / "mixed.parquet", shard=1, progress=False)


def test_an_input_knows_whether_it_is_a_video(both):
    assert [each.film for each in both] == [True, True, False] and ListSource(both).video
    assert isinstance(both[0], Input) and both[0].images == (both[0].image,)
