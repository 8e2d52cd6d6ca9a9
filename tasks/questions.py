"""Every question template with its wordings. A template belongs to no regime: several regimes ask the same thing."""

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
    wordings = WORDINGS[ask.template]
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
