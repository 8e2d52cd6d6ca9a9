"""Every question template with its wordings. A template belongs to no regime: several regimes ask the same thing.

Videos and whole pages have templates of their own beside those of pictures, which they use too: the words of the first
table are the image reference's vocabulary, and no new template may move its ids.
"""

from __future__ import annotations

import random
from typing import NamedTuple

WORDINGS: dict[str, tuple[str, ...]] = {
    "colour_of_object": ("what colour is the object?", "which colour does the object have?"),
    "shape_of_object": ("what shape is the object?", "which shape does the object have?"),
    "colour_of": ("what colour is the {shape}?", "which colour does the {shape} have?"),
    "shape_of": ("what shape is {colour}?", "which shape is {colour}?"),
    "count_objects": ("how many objects are there?", "how many objects do you see?"),
    "count_of": ("how many {things} are there?", "how many {things} do you see?"),
    "count_colour": ("how many are {colour}?", "how many objects are {colour}?"),
    "shape_beside": ("what shape is {where} the {colour} {shape}?", "which shape is {where} the {colour} {shape}?"),
    "colour_beside": (
        "what colour is the object {where} the {colour} {shape}?",
        "which colour is the object {where} the {colour} {shape}?",
    ),
    "is_beside": (
        "is the {colour} {shape} {where} the {colour2} {shape2}?",
        "do you see the {colour} {shape} {where} the {colour2} {shape2}?",
    ),
    "number_written": ("what number is written?", "which number do you see?"),
    "word_written": ("what word is written?", "which word do you see?"),
    "text_written": ("what is written?", "what is written here?"),
    "number_on_plate": ("what number is on the {colour} plate?", "which number is on the {colour} plate?"),
    "word_on_plate": ("what word is on the {colour} plate?", "which word is on the {colour} plate?"),
    "written_at": ("what is written at the {place}?", "what do you see written at the {place}?"),
    "cell_of": ("what is {column} of {row}?", "what is the {column} value of {row}?"),
    "value_of": ("what is the value of {row}?", "which value does {row} have?"),
    "price_of": ("what is the price of {row}?", "which price does {row} have?"),
    "total": ("what is the total?", "what is the total price?"),
    "key_value": ("what is the {key}?", "which {key} is written?"),
    "highest": ("which is highest?", "which has the highest value?"),
    "lowest": ("which is lowest?", "which has the lowest value?"),
    "colour_of_bar": ("what colour is {row}?", "which colour does {row} have?"),
    "digit_at": ("what digit is at the {place}?", "which digit is at the {place}?"),
    "count_digits": ("how many digits are there?", "how many digits do you see?"),
    "what_shown": ("what is shown?", "what do you see?"),
    "what_beside": ("what is {where} the {thing}?", "what do you see {where} the {thing}?"),
    "is_there": ("is there a {thing}?", "do you see a {thing}?"),
}

FILM_WORDINGS: dict[str, tuple[str, ...]] = {
    "way_of_object": ("which way does the object move?", "where does the object go?"),
    "way_of": ("which way does the {colour} {shape} move?", "where does the {colour} {shape} go?"),
    "way_of_camera": ("which way does the camera move?", "where does the camera go?"),
    "shape_going": ("what shape moves {way}?", "which shape goes {way}?"),
    "colour_going": (
        "what colour is the object that moves {way}?",
        "which colour does the object that goes {way} have?",
    ),
    "shape_moving": ("what shape moves?", "which shape moves?"),
    "colour_moving": ("what colour is the object that moves?", "which colour does the object that moves have?"),
    "shape_nth": ("what shape comes {when}?", "which shape comes {when}?"),
    "colour_nth": ("what colour comes {when}?", "which colour comes {when}?"),
    "shape_next": ("what shape comes {when} the {colour} {shape}?", "which shape comes {when} the {colour} {shape}?"),
    "colour_next": (
        "what colour comes {when} the {colour} {shape}?",
        "which colour comes {when} the {colour} {shape}?",
    ),
    "is_before": (
        "does the {colour} {shape} come before the {colour2} {shape2}?",
        "is the {colour} {shape} before the {colour2} {shape2}?",
    ),
    "count_flashes": (
        "how many times does the {colour} {shape} flash?",
        "how many flashes of the {colour} {shape} are there?",
    ),
    "count_frames": (
        "how many frames have the {colour} {shape}?",
        "in how many frames do you see the {colour} {shape}?",
    ),
    "count_jumps": (
        "how many times does the {colour} {shape} jump?",
        "how many jumps of the {colour} {shape} are there?",
    ),
    "shape_jumping": ("what shape jumps?", "which shape jumps?"),
    "what_changes": ("what changes?", "what changes here?"),
    "shape_recoloured": ("what shape changes colour?", "which shape changes colour?"),
    "colour_at": (
        "what colour is the {shape} at the {when}?",
        "which colour does the {shape} have at the {when}?",
    ),
    "shape_at": ("what shape is {colour} at the {when}?", "which shape is {colour} at the {when}?"),
    "shape_gone": ("what shape goes away?", "which shape goes away?"),
    "colour_gone": ("what colour is the object that goes away?", "which colour does the object that goes away have?"),
    "shape_coming": ("what shape comes?", "which shape comes?"),
    "colour_coming": ("what colour is the object that comes?", "which colour does the object that comes have?"),
    "shape_in_frame": ("what shape comes in frame {number}?", "which shape comes in frame {number}?"),
    "first_frame": (
        "in which frame does the {colour} {shape} come?",
        "which frame is the first with the {colour} {shape}?",
    ),
    "last_frame": (
        "in which frame is the {colour} {shape} last?",
        "which frame is the last with the {colour} {shape}?",
    ),
    "part_of": ("when does the {colour} {shape} {verb}?", "in which part does the {colour} {shape} {verb}?"),
    "part_recoloured": ("when does the {shape} change colour?", "in which part does the {shape} change colour?"),
    "number_on_page": ("what number is on page {page}?", "which number is on page {page}?"),
    "word_on_page": ("what word is on page {page}?", "which word is on page {page}?"),
    "written_on": ("what is written on the {which} page?", "what do you see written on the {which} page?"),
    "count_pages": ("how many pages are there?", "how many pages do you see?"),
}

PAGE_WORDINGS: dict[str, tuple[str, ...]] = {
    "whole_page": ("what is written on the whole page?", "can you read the whole page?"),
}

ALL_WORDINGS = WORDINGS | FILM_WORDINGS | PAGE_WORDINGS


class Ask(NamedTuple):
    """A question before it is worded: template id, what fills its slots, accepted answers, and the parts of the
    canvas that the question names (`via`) and that hold the answer (`at`)."""

    template: str
    slots: dict[str, str]
    answers: tuple[str, ...]
    via: tuple[str, ...] = ()
    at: tuple[str, ...] = ()


def word(ask: Ask, choice: int) -> str:
    """The question in wording number `choice` (taken modulo the number of wordings)."""
    wordings = ALL_WORDINGS[ask.template]
    return wordings[choice % len(wordings)].format(**ask.slots)


def pick(asks: list[Ask], count: int, rng: random.Random) -> list[Ask]:
    """At most `count` of `asks` in random order, spread over the templates before any template comes twice."""
    asks = list(asks)
    rng.shuffle(asks)
    seen: dict[str, int] = {}
    ranked = []
    for ask in asks:
        ranked.append((seen.get(ask.template, 0), ask))
        seen[ask.template] = seen.get(ask.template, 0) + 1
    ranked.sort(key=lambda pair: pair[0])  # stable: keeps the shuffled order inside a rank
    chosen = [ask for _, ask in ranked[:count]]
    rng.shuffle(chosen)
    return chosen
