"""Lessons of noise: what the recipe of learned compressors can be run on."""

import numpy as np

from foveate.models.distilling.lessons import Lesson

ANSWERS = ("red", "green thing", "left", None)


class Noise:
    """Random pictures, `period` of them in the stream; every fourth question has no answer."""

    label = "noise"

    def __init__(self, questions, period=10**6):
        self.questions, self.period = questions, period

    def lesson(self, number, seed):
        number = number if number >= 10**6 else number % self.period
        picture = np.random.default_rng([seed, number]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        return Lesson(picture, self.questions[number % len(self.questions)], ANSWERS[number % len(ANSWERS)])

    def held_out(self, count):
        return [self.lesson(10**6 + i, 0) for i in range(count)]
