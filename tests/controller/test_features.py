"""Pixel and question features: bounded, finite, stable, and saying what their names promise."""

import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

from foveate.controller.features import (
    PIXEL_FEATURES,
    QUESTION_FEATURES,
    pixel_features,
    question_features,
)

pytestmark = pytest.mark.fast


def pixels(image):
    return dict(zip(PIXEL_FEATURES, pixel_features(np.asarray(image)).tolist(), strict=True))


def question(text):
    return dict(zip(QUESTION_FEATURES, question_features(text).tolist(), strict=True))


def page(size=96, lines=8):
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    for line in range(lines):
        draw.text((4, 4 + 11 * line), "lorem ipsum 42 dol", "black")
    return image


def discs(places, size=96, radius=9):
    image = Image.new("RGB", (size, size), "white")
    for x, y in places:
        ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill="red")
    return image


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class TestPixels:
    @pytest.mark.parametrize("shape", [(1, 1), (1, 7), (1, 3000), (3000, 1), (2, 9), (96, 96), (127, 128), (129, 64)])
    @pytest.mark.parametrize("fill", ["noise", "black", "white"])
    def test_every_size_gives_finite_values_within_zero_and_one(self, shape, fill):
        image = noise(*shape) if fill == "noise" else np.full((*shape, 3), 255 * (fill == "white"), np.uint8)
        values = pixel_features(image)
        assert values.shape == (24,) and values.dtype == np.float32
        assert np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1

    @pytest.mark.parametrize(
        "image",
        [
            np.zeros((8, 8), np.uint8),
            np.zeros((8, 8, 1), np.uint8),
            np.zeros((8, 8, 4), np.uint8),
            np.zeros((8, 8, 3), np.float32),
            np.zeros((0, 8, 3), np.uint8),
            [[[0, 0, 0]]],
        ],
    )
    def test_anything_but_an_rgb_picture_is_refused_by_name(self, image):
        with pytest.raises(ValueError, match="^image: "):
            pixel_features(image)

    def test_a_constant_picture_has_no_contrast_no_edges_and_one_colour(self):
        values = pixels(np.full((50, 70, 3), 137, np.uint8))
        silent = (
            "contrast",
            "colourfulness",
            "edge_density",
            "gradient_fine",
            "gradient_coarse",
            "active_cells",
            "blobs",
        )
        assert [values[name] for name in silent] == [0.0] * len(silent)
        assert values["top_colour"] == 1.0 and values["flat_cells"] == 1.0 and values["edge_direction"] == 0.5

    def test_a_text_page_and_a_single_object_part_in_the_expected_direction(self):
        text, single = pixels(page()), pixels(discs([(30, 40)]))
        for name in ("edge_density", "active_cells", "spread", "row_alternation", "gradient_fine"):
            assert text[name] > 1.5 * single[name], name
        assert single["flat_cells"] > text["flat_cells"] + 0.5
        assert single["top_colour"] > text["top_colour"]
        assert single["colourfulness"] > 0.1 > text["colourfulness"]

    def test_blobs_count_separate_objects(self):
        places = [(20, 20), (70, 20), (20, 70), (70, 70)]
        for count in range(5):
            assert pixels(discs(places[:count]))["blobs"] == pytest.approx(np.log2(1 + count) / 6, abs=1e-6)

    def test_the_centre_follows_the_object(self):
        values = pixels(discs([(24, 72)]))
        assert values["centroid_x"] == pytest.approx(0.25, abs=0.04) and values["centroid_y"] == pytest.approx(
            0.75, abs=0.04
        )

    def test_vertical_stripes_are_all_horizontal_difference_at_the_highest_frequency(self):
        stripes = np.zeros((64, 64, 3), np.uint8)
        stripes[:, ::2] = 255
        values = pixels(stripes)
        assert values["edge_direction"] == 1.0 and values["row_alternation"] == 0.0
        assert values["detail"] == pytest.approx(62 / 63, abs=1e-5)  # 62 inner columns over 63 steps

    def test_a_ramp_has_edges_but_no_detail(self):
        ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
        assert pixels(ramp)["detail"] < 0.02 < pixels(ramp)["gradient_coarse"]

    def test_sizes_are_those_of_the_whole_picture(self):
        values = pixels(noise(1024, 256))
        assert values["log_height"] == 10 / 16 and values["log_width"] == 0.5

    def test_the_input_is_left_alone_and_the_answer_repeats(self):
        image = noise(40, 60)
        before = image.copy()
        first = pixel_features(image)
        assert np.array_equal(image, before) and np.array_equal(first, pixel_features(image))
        assert np.array_equal(first, pixel_features(np.asfortranarray(image)))

    def test_a_large_picture_costs_about_as_much_as_a_small_one(self):
        def best(image):
            times = []
            for _ in range(20):
                start = time.perf_counter()
                pixel_features(image)
                times.append(time.perf_counter() - start)
            return min(times)

        small, large = best(noise(128, 128)), best(noise(4096, 4096))
        assert large < 5 * small, f"{small * 1e3:.2f} ms against {large * 1e3:.2f} ms"  # 1024 times the pixels


class TestQuestion:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "?!",
            "\x00",
            "\ud800 lone",
            "Quelle est la couleur à gauche ?",
            "这是什么颜色？",
            "😀" * 50,
            "a" * 10**6,
        ],
    )
    def test_every_string_gives_finite_values_within_zero_and_one(self, text):
        values = question_features(text)
        assert values.shape == (41,) and values.dtype == np.float32
        assert np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1

    def test_an_empty_question_is_all_zero(self):
        assert not question_features("").any()

    @pytest.mark.parametrize("text", [None, b"what", 3])
    def test_anything_but_a_string_is_refused_by_name(self, text):
        with pytest.raises(ValueError, match="^question: "):
            question_features(text)

    @pytest.mark.parametrize(
        ("text", "opening"),
        [
            ("How many circles are there?", "how_many"),
            ("What number of stars is there?", "how_many"),
            ("what colour is the ring?", "what"),
            ("What's the total?", "what"),
            ("Which is highest?", "which"),
            ("Is the ring red?", "yes_no"),
            ("Where is it?", "where_who"),
            ("Read the sign.", "read"),
            ("Island?", None),
        ],
    )
    def test_the_opening_is_one_class(self, text, opening):
        values = question(text)
        assert [k for k in values if k.startswith("opens_") and values[k]] == ([f"opens_{opening}"] if opening else [])

    def test_word_classes_digits_quotes_and_names_are_seen(self):
        values = question("What colour is the 'EXIT' sign left of 7 squares?")
        said = {name for name in QUESTION_FEATURES if name.startswith(("says_", "has_")) and values[name] == 1}
        assert said == {
            *("has_digit", "has_quote", "has_name"),
            *("says_colour", "says_shape", "says_relation", "says_reading"),
        }

    def test_an_apostrophe_is_not_a_quote(self):
        assert question("what is the dog's colour")["has_quote"] == 0

    def test_the_hash_is_stable_across_processes_and_versions(self):
        values = question("total")
        assert [k for k in values if k.startswith("bucket_") and values[k]] == ["bucket_14"]  # crc32(b"total") % 24
        assert values["bucket_14"] == pytest.approx(1 / 3)

    def test_case_and_unicode_form_change_nothing_in_the_words(self):
        buckets = slice(QUESTION_FEATURES.index("bucket_0"), None)
        composed, split = question_features("caf\u00e9 TOTAL")[buckets], question_features("cafe\u0301 total")[buckets]
        assert np.array_equal(composed, split)
