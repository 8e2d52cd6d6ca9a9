"""What every registered method promises, whatever it does: run for each (stage, name)."""

import dataclasses
import inspect
import re

import pytest
import torch

import foveate.compressors  # noqa: F401  (fills the registry)
from foveate.compressors.base import (
    ANY_DEPTH,
    STAGES,
    Compressor,
    InputKnob,
    KVReducer,
    Reducer,
    Resampler,
    Selector,
    Streamer,
    apply,
    apply_kv,
    apply_size,
    in_order,
)
from foveate.compressors.learned import on_trial
from foveate.compressors.registry import COMPRESSORS, make
from foveate.compressors.signals import OF_ROW, SHAPES, MissingSignal
from foveate.compressors.trial import for_method

pytestmark = [pytest.mark.fast, pytest.mark.matrix]

KEYS = sorted(COMPRESSORS)
HEADINGS = ("Paper", "Code", "Formula", "Shapes", "Cost", "Differs", "Args", "Raises")
COUNTS = (1, 5, 11, 12)
GRIDS = [(1, 3, 4), (1, 5, 7), (1, 1, 9), (1, 7, 3), (1, 4, 4)]
VIDEO_GRIDS = [(3, 2, 2), (4, 1, 3), (2, 3, 5)]
MAKERS = (Resampler, Streamer)  # of new tokens


def label(value):
    """How a (stage, name), a grid or a count reads in a test's id."""
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def of(*bases):
    return [key for key in KEYS if issubclass(COMPRESSORS[key], bases)]


def ready(key, grid=(1, 3, 4)):
    """The method as a host runs it, an untrained network for this grid in it where it learns."""
    return on_trial(make(*key), grid)


def with_heads(key, heads=2):
    """The same for a cache of as many heads."""
    return on_trial(make(*key), heads=heads)


def grids(key):
    by_modality = {"image": GRIDS, "video": VIDEO_GRIDS, "both": GRIDS + VIDEO_GRIDS}
    return by_modality[COMPRESSORS[key].modality]


def cases(*bases):
    """(key, grid, count) for every method of these bases: the fewest and the most tokens, and some between."""
    found = []
    for key in of(*bases):
        for grid in grids(key):
            reachable, n = ready(key, grid).reachable(grid), grid[0] * grid[1] * grid[2]
            wanted = {c for c in (1, 2, 5, n - 1, n) if c in reachable} | {reachable[0], reachable[-1]}
            found += [(key, grid, count) for count in sorted(wanted)]
    return found


@pytest.fixture
def tokens_for(tiny):
    """Random tokens of a whole grid with the signals, tagged ones included, that the method may ask for."""

    def build(key, grid=(1, 3, 4), **options):
        n = grid[0] * grid[1] * grid[2]
        tokens = tiny(n=n, grid=grid, cls=COMPRESSORS[key].takes_cls, **options)
        return for_method(tokens, make(*key))

    return build


def row(value, index):
    """One row of tokens or of a cache, as a batch of one."""
    one = slice(index, index + 1)
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    batched = {name: v[one] for name, v in fields.items() if isinstance(v, torch.Tensor) and name != "visual"}
    return dataclasses.replace(value, **batched, signals={kind: v[one] for kind, v in value.signals.items()})


def without(value, kind):
    """The same with every signal of one kind taken away."""
    return dataclasses.replace(value, signals={k: v for k, v in value.signals.items() if k.split(".")[0] != kind})


def same(one, other):
    """Whether two answers hold equal tensors in every field."""
    for f in dataclasses.fields(one):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
            return False
    return True


class TestEveryMethod:
    @pytest.mark.parametrize("key", KEYS, ids=label)
    def test_is_a_frozen_dataclass_filed_under_one_base(self, key):
        cls = COMPRESSORS[key]
        assert "__dataclass_params__" in vars(cls) and cls.__dataclass_params__.frozen
        assert sum(issubclass(cls, base) for base in (Reducer, Resampler, InputKnob, KVReducer, Streamer)) == 1
        assert key[0] in STAGES and key[1] == cls.name and re.fullmatch(r"[a-z][a-z0-9_]*", cls.name)

    @pytest.mark.parametrize("key", KEYS, ids=label)
    def test_docstring_has_every_heading_in_order_with_something_behind_it(self, key):
        text = vars(COMPRESSORS[key])["__doc__"]
        found = re.findall(rf"^\s+({'|'.join(HEADINGS)}):(?:[ \t]+\S|\n[ \t]+\S)", text, flags=re.MULTILINE)
        assert tuple(found) == HEADINGS

    @pytest.mark.parametrize("key", KEYS, ids=label)
    def test_every_hyperparameter_is_explained(self, key):
        arguments = inspect.getdoc(COMPRESSORS[key]).split("Args:")[1].split("Raises:")[0]
        for f in dataclasses.fields(COMPRESSORS[key]):
            assert re.search(rf"^\s+{f.name}: \S", arguments, flags=re.MULTILINE), f.name

    @pytest.mark.parametrize("key", KEYS, ids=label)
    def test_class_attributes_have_known_values(self, key):
        cls = COMPRESSORS[key]
        assert cls.kinds <= set(SHAPES)
        assert cls.modality in ("image", "video", "both")
        assert cls.positions in ("keep", "renumber", "mean")
        assert cls.fidelity in ("reference", "paper", "reconstruction")
        assert cls.paper == "none (control)" or re.search(r"https://\S+$", cls.paper)
        traits = [name for name, value in vars(Compressor).items() if isinstance(value, bool)]
        assert "windowed" in traits and all(isinstance(getattr(cls, name), bool) for name in traits)
        if issubclass(cls, Resampler):
            assert cls.hook in ("before", "after", "instead")

    @pytest.mark.parametrize("depth", [4, 8, 23, 32])
    @pytest.mark.parametrize("key", KEYS, ids=label)
    def test_asks_only_for_promised_signals_and_the_same_ones_at_every_depth(self, key, depth):
        asked = make(*key).signals(depth)
        assert {signal.kind for signal in asked} <= COMPRESSORS[key].kinds
        assert {signal.key for signal in asked} == {signal.key for signal in make(*key).signals(ANY_DEPTH)}
        assert all(-1 <= signal.layer < depth for signal in asked)

    @pytest.mark.parametrize("depth", [4, 8, 23, 32])
    @pytest.mark.parametrize("key", [key for key in KEYS if key[0] in ("encoder", "prefill")], ids=label)
    def test_sites_ascend_inside_the_model_and_the_last_one_leaves_the_count(self, key, depth):
        method = make(*key)
        for n, count in ((64, 5), (64, 32), (49, 48), (12, 1), (3, 2)):
            sites = method.sites(n, count, depth)
            layers, counts = [layer for layer, _ in sites], [left for _, left in sites]
            assert layers == sorted(set(layers)) and counts[-1] == count
            assert all(after < before for before, after in zip([n, *counts], counts, strict=False))
            assert (1 if key[0] == "prefill" else 0) <= layers[0] and layers[-1] < depth
            for layer in layers:
                keys = {signal.key for signal in method.signals(depth)}
                assert {signal.key for signal in method.signals_at(layer, depth)} == keys

    @pytest.mark.parametrize("key", KEYS, ids=label)
    def test_reachable_counts_ascend_within_the_grid(self, key):
        for grid in grids(key):
            reachable = list(make(*key).reachable(grid))
            assert reachable == sorted(set(reachable)) and 1 <= reachable[0]
            assert reachable[-1] <= grid[0] * grid[1] * grid[2]


class TestReducers:
    @pytest.mark.parametrize(("key", "grid", "count"), cases(Reducer), ids=label)
    def test_keeps_the_budget_with_unique_anchors(self, key, grid, count, tokens_for):
        tokens = tokens_for(key, grid, batch=2)
        reduction = ready(key, grid).reduce(tokens, count)
        slots = reduction.anchor.shape[1]
        used = torch.full((2,), slots) if reduction.count is None else reduction.count
        assert slots <= count and (used >= 1).all() and (COMPRESSORS[key].adaptive or (used == count).all())
        for anchor in reduction.anchor:
            real = anchor[anchor >= 0]
            assert real.unique().numel() == real.numel() and (real < tokens.n).all()
        if reduction.into is not None:
            assert reduction.into.shape == reduction.weight.shape
            assert reduction.into.min() >= -1 and reduction.into.max() < slots

    @pytest.mark.parametrize("key", of(Reducer), ids=label)
    def test_no_token_is_counted_twice(self, key, tokens_for):
        tokens = tokens_for(key, batch=2)
        size = apply_size(ready(key).reduce(tokens, 5), tokens.size)
        assert (size.sum(-1) <= tokens.n + 1e-4).all() and (size >= 0).all()

    @pytest.mark.parametrize("key", of(Reducer), ids=label)
    def test_refuses_a_count_outside_the_tokens(self, key, tokens_for):
        for count in (0, 13, -1):
            with pytest.raises(ValueError, match=rf"{key[1]}: count {count} is outside 1\.\.12"):
                ready(key).reduce(tokens_for(key), count)

    @pytest.mark.parametrize("count", [1, 5, 11])
    @pytest.mark.parametrize("key", of(Reducer), ids=label)
    def test_a_row_ignores_its_batch_mates(self, key, count, tokens_for):
        both = tokens_for(key, batch=3)
        together = in_order(ready(key).reduce(both, count))
        for index in range(3):
            alone = in_order(ready(key).reduce(row(both, index), count))
            assert torch.equal(together.anchor[index], alone.anchor[0])
            expected = apply(alone, both.x[index : index + 1])[0]
            assert torch.allclose(apply(together, both.x)[index], expected, atol=1e-5)

    @pytest.mark.parametrize("key", of(Reducer), ids=label)
    def test_a_missing_signal_is_named(self, key, tokens_for):
        method = ready(key)
        for kind in {signal.kind for signal in method.signals(ANY_DEPTH)}:
            with pytest.raises(MissingSignal, match=f"{key[1]}.*{kind}"):
                method.reduce(without(tokens_for(key), kind), 5)

    @pytest.mark.parametrize("key", of(Reducer), ids=label)
    def test_a_signal_of_the_wrong_shape_is_named(self, key, tokens_for):
        method, tokens = ready(key), tokens_for(key)
        for signal in method.signals(ANY_DEPTH):
            wrong = {**tokens.signals, signal.key: torch.zeros(1, 5, 5)}
            wanted = "a vector for each row" if signal.kind in OF_ROW else "12 rows"
            with pytest.raises(ValueError, match=rf"{key[1]}.*{signal.key}.*wanted {wanted}"):
                method.reduce(dataclasses.replace(tokens, signals=wrong), 5)

    @pytest.mark.parametrize("key", of(Reducer), ids=label)
    def test_two_calls_agree(self, key, tokens_for):
        tokens = tokens_for(key, batch=2)
        assert same(ready(key).reduce(tokens, 5), ready(key).reduce(tokens, 5))

    @pytest.mark.parametrize("key", of(Reducer), ids=label)
    def test_reads_its_arguments_without_changing_them(self, key, tokens_for):
        tokens, untouched = tokens_for(key, batch=2), tokens_for(key, batch=2)
        ready(key).reduce(tokens, 5)
        assert torch.equal(tokens.x, untouched.x) and torch.equal(tokens.size, untouched.size)
        assert all(torch.equal(tokens.signals[kind], untouched.signals[kind]) for kind in untouched.signals)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("key", of(Reducer), ids=label)
    def test_half_precision_gives_finite_tokens_of_that_type(self, key, dtype, tokens_for):
        tokens = tokens_for(key, batch=2, dtype=dtype)
        reduction = ready(key).reduce(tokens, 5)
        kept = apply(reduction, tokens.x)
        assert kept.dtype == dtype and kept.isfinite().all()
        assert reduction.weight is None or reduction.weight.dtype == torch.float32

    @pytest.mark.parametrize("key", [key for key in of(Selector) if COMPRESSORS[key].kinds], ids=label)
    def test_equal_scores_go_to_the_lower_index(self, key, tokens_for):
        tokens = tokens_for(key, batch=2)
        flat = {kind: torch.full_like(value, 0.25) for kind, value in tokens.signals.items()}
        level = dataclasses.replace(tokens, x=torch.ones_like(tokens.x), signals=flat)
        assert ready(key).reduce(level, 5).anchor.tolist() == [[0, 1, 2, 3, 4]] * 2

    @pytest.mark.parametrize("key", of(Reducer), ids=label)
    def test_zero_features_and_signals_break_nothing(self, key, tokens_for):
        tokens = tokens_for(key)
        zero = {kind: torch.zeros_like(value) for kind, value in tokens.signals.items()}
        nothing = dataclasses.replace(tokens, x=torch.zeros_like(tokens.x), signals=zero)
        assert (apply(ready(key).reduce(nothing, 5), nothing.x) == 0).all()

    @pytest.mark.parametrize("key", of(Reducer), ids=label)
    def test_flops_that_depend_on_the_width_of_keys_are_not_told_without_it(self, key):
        method, grid = ready(key), (1, 3, 4)
        if method.flops_on(grid, 12, 5, 8, key_dim=6) != method.flops_on(grid, 12, 5, 8, key_dim=12):
            with pytest.raises(ValueError, match=f"{key[1]}: flops needs key_dim"):
                method.flops_on(grid, 12, 5, 8)

    @pytest.mark.parametrize(("key", "grid", "count"), cases(Reducer), ids=label)
    def test_flops_are_those_of_its_matrix_products(self, key, grid, count, tokens_for, matrix_flops):
        tokens, method = tokens_for(key, grid, batch=2), ready(key, grid)
        measured = matrix_flops(lambda: apply(method.reduce(tokens, count), tokens.x)) / 2
        told = method.flops_on(grid, tokens.n, count, tokens.x.shape[-1], key_dim=tokens.signals["keys"].shape[-1])
        assert told == pytest.approx(measured, rel=0.01)


class TestResamplers:
    @pytest.mark.parametrize(("key", "grid", "count"), cases(*MAKERS), ids=label)
    def test_gives_the_asked_number_of_finite_tokens(self, key, grid, count, tokens_for):
        tokens = tokens_for(key, grid, batch=2)
        made = ready(key, grid).resample(tokens, count)
        assert made.x.shape[:2] == made.position.shape == (2, count) and made.x.isfinite().all()
        assert ((made.position >= -1) & (made.position < tokens.n)).all()
        if COMPRESSORS[key].emits_grid:
            t, h, w = made.grid_out
            assert t * h * w == count

    @pytest.mark.parametrize("key", of(*MAKERS), ids=label)
    def test_refuses_a_count_that_is_not_reachable(self, key, tokens_for):
        for grid in grids(key):
            method, total = ready(key, grid), grid[0] * grid[1] * grid[2]
            for count in (0, total + 1, *sorted(set(range(1, total + 1)) - set(method.reachable(grid)))[:2]):
                with pytest.raises(ValueError, match=f"{key[1]}: count {count}"):
                    method.resample(tokens_for(key, grid), count)

    @pytest.mark.parametrize(("key", "grid", "count"), cases(*MAKERS), ids=label)
    def test_a_row_ignores_its_batch_mates_and_two_calls_agree(self, key, grid, count, tokens_for):
        both, method = tokens_for(key, grid, batch=2), ready(key, grid)
        together = method.resample(both, count)
        assert same(together, method.resample(both, count))
        for index in range(2):
            alone = method.resample(row(both, index), count)
            assert torch.allclose(together.x[index], alone.x[0], atol=1e-5)
            assert torch.equal(together.position[index], alone.position[0])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("key", of(*MAKERS), ids=label)
    def test_half_precision_gives_finite_tokens_of_that_type(self, key, dtype, tokens_for):
        grid = grids(key)[0]
        method = ready(key, grid)
        made = method.resample(tokens_for(key, grid, dtype=dtype), method.reachable(grid)[0])
        assert made.x.dtype == dtype and made.x.isfinite().all()

    @pytest.mark.parametrize("key", of(*MAKERS), ids=label)
    def test_a_missing_signal_is_named(self, key, tokens_for):
        method = ready(key)
        for kind in {signal.kind for signal in method.signals(ANY_DEPTH)}:
            with pytest.raises(MissingSignal, match=f"{key[1]}.*{kind}"):
                method.resample(without(tokens_for(key), kind), method.reachable((1, 3, 4))[0])

    @pytest.mark.parametrize(("key", "grid", "count"), cases(*MAKERS), ids=label)
    def test_flops_are_those_of_its_matrix_products(self, key, grid, count, tokens_for, matrix_flops):
        tokens, method = tokens_for(key, grid, batch=2), ready(key, grid)
        measured = matrix_flops(lambda: method.resample(tokens, count)) / 2
        told = method.flops_on(grid, tokens.n, count, tokens.x.shape[-1], key_dim=tokens.signals["keys"].shape[-1])
        assert told == pytest.approx(measured, rel=0.01)


class TestInputKnobs:
    @pytest.mark.parametrize("key", of(InputKnob), ids=label)
    def test_target_fits_the_count_and_grows_with_it(self, key):
        method = make(*key)
        for grid in grids(key):
            total, before = grid[0] * grid[1] * grid[2], 0
            for count in range(method.reachable(grid)[0], total + 1):
                target = method.target(grid, count)
                tokens = target[0] * target[1] * target[2]
                assert before <= tokens <= count and tokens in method.reachable(grid)
                assert all(1 <= new <= old for new, old in zip(target, grid, strict=True))
                before = tokens
            assert method.target(grid, total) == grid

    @pytest.mark.parametrize("key", of(InputKnob), ids=label)
    def test_every_reachable_count_is_met_exactly(self, key):
        for grid in grids(key):
            for count in make(*key).reachable(grid):
                t, h, w = make(*key).target(grid, count)
                assert t * h * w == count


class TestKVReducers:
    @pytest.mark.parametrize("count", COUNTS)
    @pytest.mark.parametrize("key", of(KVReducer), ids=label)
    def test_keeps_all_text_and_the_count_of_visual_entries(self, key, count, tiny_cache):
        cache = tiny_cache(batch=2)
        reduction = with_heads(key).reduce(cache, count)
        used = reduction.keep >= 0
        visual = cache.visual[reduction.keep.clamp(min=0)] & used  # (B, K, M)
        text = (~cache.visual)[reduction.keep.clamp(min=0)] & used
        assert (text.sum(-1) == int((~cache.visual).sum())).all()
        kept = visual.sum(-1).float()
        assert (kept == count).all() if reduction.count is None else kept.mean() <= count
        assert ((reduction.keep.diff(dim=-1) > 0) | ~used[..., 1:]).all()

    @pytest.mark.parametrize("key", of(KVReducer), ids=label)
    def test_refuses_a_count_outside_the_visual_entries(self, key, tiny_cache):
        for count in (0, 13):
            with pytest.raises(ValueError, match=rf"{key[1]}: count {count} is outside 1\.\.12"):
                with_heads(key).reduce(tiny_cache(), count)

    @pytest.mark.parametrize("key", of(KVReducer), ids=label)
    def test_a_row_ignores_its_batch_mates_and_two_calls_agree(self, key, tiny_cache):
        both, method = tiny_cache(batch=3), with_heads(key)
        together = method.reduce(both, 5)
        assert same(together, method.reduce(both, 5))
        for index in range(3):
            alone = method.reduce(row(both, index), 5)
            assert torch.equal(together.keep[index], alone.keep[0])
            expected = apply_kv(alone, both.values[index : index + 1])[0]
            assert torch.allclose(apply_kv(together, both.values)[index], expected, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("key", of(KVReducer), ids=label)
    def test_half_precision_gives_finite_entries_of_that_type(self, key, dtype, tiny_cache):
        cache = tiny_cache(dtype=dtype)
        kept = apply_kv(with_heads(key).reduce(cache, 5), cache.keys)
        assert kept.dtype == dtype and kept.isfinite().all()

    @pytest.mark.parametrize("key", of(KVReducer), ids=label)
    def test_a_missing_signal_is_named(self, key, tiny_cache):
        for kind in {signal.kind for signal in with_heads(key).signals(ANY_DEPTH)}:
            with pytest.raises(MissingSignal, match=f"{key[1]}.*{kind}"):
                with_heads(key).reduce(without(tiny_cache(), kind), 5)

    @pytest.mark.parametrize("count", COUNTS)
    @pytest.mark.parametrize("key", of(KVReducer), ids=label)
    def test_flops_are_those_of_its_matrix_products(self, key, count, tiny_cache, matrix_flops):
        cache, method = tiny_cache(batch=2, heads=3), with_heads(key, 3)
        measured = matrix_flops(lambda: method.reduce(cache, count)) / 2
        assert method.flops(12, count, 4, heads=3, text=5) == pytest.approx(measured, rel=0.01)
