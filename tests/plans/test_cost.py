"""The cost model against figures worked out from published shapes, and against the figures that papers print."""

import numpy as np
import pytest

from foveate.plans.cost import (
    DecoderShape,
    HostShape,
    ViTShape,
    decode_block,
    decoder_block,
    kv_bytes,
    lm_head,
    one_shot_keep,
    one_shot_rho_bar,
    paper_flops,
    patch_embed,
    projector,
    query_rows,
    rho_bar,
    staged_rho_bar,
    vit_block,
)

pytestmark = pytest.mark.fast

CLIP_L = ViTShape(dim=1024, mlp=4096, layers=23, heads=16, patch=14)
LLAMA_7B = DecoderShape(dim=4096, mlp=11008, layers=32, heads=32, kv_heads=32, head_dim=128, vocab=32000)
LLAMA_13B = DecoderShape(dim=5120, mlp=13824, layers=40, heads=40, kv_heads=40, head_dim=128, vocab=32000)
QWEN_7B = DecoderShape(dim=3584, mlp=18944, layers=28, heads=28, kv_heads=4, head_dim=128, vocab=152064)
SMALL = DecoderShape(dim=8, mlp=16, layers=2, heads=4, kv_heads=2, head_dim=2, vocab=10)
G, T, M = 1e9, 1e12, 1e6


class TestReferenceFigures:
    """A figure given to k digits must be met to all k."""

    def test_clip_large_at_336_pixels(self):
        block = vit_block(CLIP_L, 577)
        assert round(block / G, 3) == 15.884
        assert round(CLIP_L.layers * block / G, 1) == 365.3
        assert round(24 * block / G, 1) == 381.2
        assert round(patch_embed(CLIP_L, 576) / G, 3) == 0.694

    def test_the_projector_of_llava_15(self):
        assert round(projector((1024, 4096, 4096), 576) / G, 2) == 24.16

    def test_llama_7b(self):
        assert round(decoder_block(LLAMA_7B, 640) / G, 2) == 265.75
        assert round(32 * decoder_block(LLAMA_7B, 640) / T, 3) == 8.504
        assert round(lm_head(LLAMA_7B, 1) / G, 3) == 0.262
        assert round(decode_block(LLAMA_7B, 640) / M, 2) == 415.25
        assert round(32 * decode_block(LLAMA_7B, 640) / G, 2) == 13.29

    def test_qwen_25_7b_with_grouped_queries(self):
        assert round(decoder_block(QWEN_7B, 1000) / G, 2) == 480.43
        assert round(28 * decoder_block(QWEN_7B, 1000) / T, 2) == 13.45

    def test_kv_bytes_in_half_precision(self):
        assert kv_bytes(LLAMA_7B, [1] * 32, 2) == 524_288
        assert kv_bytes(LLAMA_7B, [640] * 32, 2) == 320 * 2**20
        assert kv_bytes(QWEN_7B, [1] * 28, 2) == 57_344


class TestByHand:
    """Formulas on shapes small enough to multiply in the head."""

    def test_a_vision_block_plain_gated_and_windowed(self):
        plain = ViTShape(dim=4, mlp=8, layers=1, heads=2, patch=2)
        gated = ViTShape(dim=4, mlp=8, layers=1, heads=2, patch=2, gated=True)
        assert vit_block(plain, 10) == 8 * 10 * 16 + 4 * 100 * 4 + 4 * 10 * 4 * 8 == 4160
        assert vit_block(gated, 10) == 4160 + 2 * 10 * 4 * 8
        assert vit_block(plain, 10, window=5) == 4160 - 4 * 100 * 4 + 4 * 10 * 5 * 4
        assert vit_block(plain, 10, window=64) == 4160
        assert patch_embed(plain, 9) == 2 * 9 * (3 * 4) * 4

    def test_windows_are_cut_off_at_the_border_and_some_blocks_have_none(self):
        windowed = ViTShape(4, 8, 3, 2, 2, cls=False, merge=4, window=2, full_blocks=(1,))
        grid = (1, 3, 5)  # windows of 2 and 1 rows, of 2, 2 and 1 columns; four patches a token
        assert windowed.pairs(0, 15, grid) == windowed.pairs(2, 15, grid) == 16 * (4 + 1) * (4 + 4 + 1)
        assert windowed.pairs(1, 15, grid) == 60 * 60
        assert windowed.pairs(0, 15, (1, 1, 1)) == 16
        assert ViTShape(4, 8, 3, 2, 2).pairs(0, 7, (1, 4, 4)) == 8 * 8  # of 16 tokens 7 are left, and CLS

    def test_a_projector_takes_a_host_or_widths_and_any_depth(self):
        host = HostShape(ViTShape(4, 8, 1, 2, 2), (4, 8, 8), SMALL, 4)
        assert projector(host, 5) == projector((4, 8, 8), 5) == 2 * 5 * (4 * 8 + 8 * 8)
        assert projector((16, 16, 8), 9) == 9 * (2 * 16 * 16 + 2 * 16 * 8)  # 2 x 2 merger of 36 patches of width 4

    def test_a_decoder_block_with_grouped_queries(self):
        # he = 8, ke = 4: Q and O 2*3*8*8 each, K and V 2*3*8*4 each, attention 4*9*8, MLP 6*3*8*16
        assert decoder_block(SMALL, 3) == 384 + 384 + 192 + 192 + 288 + 2304

    def test_cached_tokens_and_causal_kernels_change_attention_alone(self):
        rest = decoder_block(SMALL, 3) - 4 * 3 * 3 * 8
        assert decoder_block(SMALL, 3, cached=5) == rest + 4 * 3 * (5 + 3) * 8
        assert decoder_block(SMALL, 3, causal=True) == rest + 2 * 3 * 4 * 8
        assert decoder_block(SMALL, 3, cached=5, causal=True) == rest + 4 * 3 * 5 * 8 + 2 * 3 * 4 * 8

    def test_prefill_in_chunks_costs_the_full_square_less_its_upper_blocks(self):
        whole, chunks = decoder_block(SMALL, 7), decoder_block(SMALL, 4) + decoder_block(SMALL, 3, cached=4)
        assert whole - chunks == 4 * 4 * 3 * 8

    def test_causal_prefill_equals_feeding_token_by_token(self):
        assert decoder_block(SMALL, 6, causal=True) == sum(decode_block(SMALL, cached) for cached in range(6))

    def test_a_decoding_step_counts_the_new_token_too(self):
        assert decode_block(SMALL, 5) == 2 * 8 * 8 + 4 * 8 * 4 + 2 * 8 * 8 + 4 * 6 * 8 + 6 * 8 * 16

    def test_heads_with_caches_of_their_own(self):
        assert decode_block(SMALL, [5, 5]) == decode_block(SMALL, 5)
        # one KV head serves 2 query heads of size 2: 4 * 4 FLOPs for each entry
        assert decode_block(SMALL, [5, 2]) == decode_block(SMALL, 5) - 4 * 4 * 3
        with pytest.raises(ValueError, match="cached has 3 numbers for 2 key-value heads"):
            decode_block(SMALL, [1, 2, 3])

    def test_kv_bytes_of_ragged_layers_and_heads(self):
        assert kv_bytes(SMALL, [3, 5], 4) == 2 * 4 * 2 * 2 * (3 + 5)
        assert kv_bytes(SMALL, [[3, 1], 5], 4) == 2 * 4 * 2 * (3 + 1 + 2 * 5)

    def test_counts_from_numpy_are_numbers_too(self):
        assert decode_block(SMALL, np.int64(5)) == decode_block(SMALL, 5)
        assert kv_bytes(SMALL, np.array([3, 5]), 4) == kv_bytes(SMALL, [3, 5], 4)

    def test_rows_of_attention_on_demand(self):
        assert query_rows(SMALL, 9) == 2 * 8 * 8 + 2 * 9 * 8 * 4 + 2 * 9 * 8
        assert query_rows(SMALL, 9, rows=3) == 3 * 2 * 8 * 8 + 2 * 9 * 8 * 4 + 3 * 2 * 9 * 8
        assert query_rows(ViTShape(4, 8, 1, 2, 2), 10) == 2 * 16 + 2 * 10 * 16 + 2 * 10 * 4

    def test_nothing_costs_nothing(self):
        assert [f(SMALL, 0) for f in (decoder_block, lm_head)] == [0, 0]
        assert vit_block(CLIP_L, 0) == patch_embed(CLIP_L, 0) == projector((4, 8), 0) == 0

    def test_exact_figures_are_whole_numbers(self):
        assert all(type(f(LLAMA_7B, 640)) is int for f in (decoder_block, decode_block, lm_head, query_rows))


class TestPapers:
    """Printed figures, each under its own paper's convention."""

    @staticmethod
    def fastv_on_13b(removed, layer=2, n=576, text=40):
        kept = [n] * layer + [n - removed * n] * (40 - layer)
        return 1 - paper_flops("fastv", LLAMA_13B, kept, text) / paper_flops("fastv", LLAMA_13B, [n] * 40, text)

    @pytest.mark.parametrize(("removed", "printed"), [(0.5, 45.0), (0.75, 67.1), (0.9, 80.3)])
    def test_fastv_reductions_on_the_13b_model(self, removed, printed):
        assert round(100 * self.fastv_on_13b(removed), 1) == printed

    @pytest.mark.parametrize(("removed", "claimed"), [(0.5, 48.1), (0.75, 71.7), (0.9, 85.7)])
    def test_fastv_would_print_more_if_text_were_pruned_too(self, removed, claimed):
        assert round(100 * self.fastv_on_13b(removed, n=616, text=0), 1) == claimed

    @pytest.mark.parametrize(
        ("visual", "printed"),
        [
            ([576] * 32, 3.817),
            ([576] * 2 + [288] * 30, 2.007),  # FastV, K = 2, half removed
            ([576] * 8 + [288] * 8 + [144] * 8 + [72] * 8, 1.777),
        ],
    )
    def test_pyramiddrop_on_llava_15_7b(self, visual, printed):
        assert round(paper_flops("pyramiddrop", LLAMA_7B, visual) / T, 3) == printed

    @pytest.mark.parametrize(
        ("visual", "printed"), [([2880] * 32, 20.83), ([2880] * 8 + [1440] * 8 + [720] * 8 + [360] * 8, 9.46)]
    )
    def test_pyramiddrop_on_llava_next_7b(self, visual, printed):
        assert round(paper_flops("pyramiddrop", LLAMA_7B, visual) / T, 2) == printed

    def test_pyramiddrop_is_half_of_the_exact_formula_and_blind_to_text(self):
        paper = paper_flops("pyramiddrop", LLAMA_7B, [576] * 32)
        assert 2 * paper == 32 * decoder_block(LLAMA_7B, 576)
        assert round(2 * paper / T, 2) == 7.63
        assert paper_flops("pyramiddrop", LLAMA_7B, [576] * 32, n_text=64) == paper

    def test_fastv_and_visionzip_share_a_formula_that_misses_one_mlp_matrix(self):
        fastv = paper_flops("fastv", LLAMA_7B, [576] * 32, 64)
        assert fastv == paper_flops("visionzip", LLAMA_7B, [576] * 32, 64)
        assert 2 * (fastv + 32 * 640 * 4096 * 11008) == 32 * decoder_block(LLAMA_7B, 640)

    def test_a_wrong_style_or_number_of_layers_is_named(self):
        with pytest.raises(ValueError, match="unknown style 'fast'; known: fastv, visionzip, pyramiddrop"):
            paper_flops("fast", LLAMA_7B, [576] * 32)
        with pytest.raises(ValueError, match="visual_per_layer has 31 counts for 32 layers"):
            paper_flops("fastv", LLAMA_7B, [576] * 31)


class TestRetention:
    """Share kept at the site against the mean over layers."""

    def test_four_halving_stages_keep_270_of_576_on_average(self):
        assert staged_rho_bar(0.5, 4) == 0.46875
        assert staged_rho_bar(0.5, 4) * 576 == 270
        assert rho_bar([576] * 8 + [288] * 8 + [144] * 8 + [72] * 8, 576) == 0.46875

    def test_a_cut_before_layer_two_of_32(self):
        assert one_shot_rho_bar(0.5, 2, 32) == (2 + 30 * 0.5) / 32 == 0.53125
        assert rho_bar([576] * 2 + [288] * 30, 576) == 0.53125

    def test_an_entry_reduction_before_the_cut(self):
        assert one_shot_rho_bar(0.5, 16, 32, entry=0.25) == 0.25 * (16 + 16 * 0.5) / 32 == 0.1875
        assert rho_bar([144] * 16 + [72] * 16, 576) == 0.1875

    @pytest.mark.parametrize(("layer", "keep"), [(0, 0.3), (2, 0.5), (3, 0.25), (31, 0.9)])
    def test_the_share_to_keep_is_the_inverse(self, layer, keep):
        assert one_shot_keep(one_shot_rho_bar(keep, layer, 32), layer, 32, 576) == pytest.approx(keep, abs=1e-12)

    def test_a_mean_that_the_early_layers_use_up_leaves_one_token(self):
        assert one_shot_keep(2 / 32, 2, 32, 576) == 1 / 576
        assert one_shot_keep(0.01, 2, 32, 576) == 1 / 576

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: one_shot_rho_bar(0.0, 2, 32), r"keep = 0.0 is outside \(0, 1\]"),
            (lambda: one_shot_rho_bar(0.5, 32, 32), r"layer = 32 is outside 0\.\.31"),
            (lambda: one_shot_rho_bar(0.5, 2, 32, 1.5), "entry = 1.5 is outside"),
            (lambda: one_shot_keep(1.2, 2, 32, 576), "mean = 1.2 is outside"),
            (lambda: one_shot_keep(0.5, 2, 32, 0), "n = 0 tokens is below 1"),
            (lambda: staged_rho_bar(0.5, 0), "stages = 0 is below 1"),
            (lambda: rho_bar([], 576), "at least one layer"),
        ],
    )
    def test_values_outside_their_range_are_named(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DecoderShape(8, 16, 2, 4, 3, 2, 10), "heads = 4 is not a multiple of kv_heads = 3"),
        (lambda: DecoderShape(8, 0, 2, 4, 2, 2, 10), "DecoderShape: mlp = 0 is below 1"),
        (lambda: ViTShape(8, 16, 0, 4, 2), "ViTShape: layers = 0 is below 1"),
        (lambda: decoder_block(SMALL, -1), "n = -1 is below 0"),
        (lambda: decode_block(SMALL, [1, -2]), r"cached\[1\] = -2 is below 0"),
        (lambda: lm_head(SMALL, -3), "positions = -3 is below 0"),
    ],
)
def test_impossible_shapes_and_counts_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
