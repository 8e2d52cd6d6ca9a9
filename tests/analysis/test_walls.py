"""Times and caches of plans beside the uncompressed pass: what is asked, what is kept, and the bytes by hand."""

from __future__ import annotations

import json

import pytest

from foveate.analysis import walls
from foveate.analysis.walls import TOKENS, Wall, median, paired, timed, wall_times
from foveate.plans.plan import BLIND, UNCOMPRESSED, Plan, keep_count

RANDOM, STRIDE = Plan.of(outside=("random", 0.5)), Plan.of(outside=("stride", 0.5))
DECODE = Plan.of(decode=("random", 0.5))


@pytest.fixture
def opened(host, monkeypatch):
    """How many rows each pass has had, and a count of passes."""
    seen, real = [], host.open
    monkeypatch.setattr(host, "open", lambda images, questions: seen.append(list(questions)) or real(images, questions))
    return seen


def test_what_is_said_is_greedy_and_no_end_ends_it(host, inputs):
    asked = inputs[:3]
    found = timed(host, asked, RANDOM, 5)
    p = host.open([each.image for each in asked], [each.question for each in asked]).run(RANDOM)
    p.decode(max_new_tokens=6, min_new_tokens=6)
    free = [ids[: next((i for i, t in enumerate(ids) if t in host.ends), 6)] for ids in found.said]
    assert [len(ids) for ids in found.said] == [6] * 3
    assert [ids[: len(own)] for ids, own in zip(p.generated, free, strict=True)] == free
    assert found.first > 0 and found.token > 0


def test_bytes_are_those_of_the_caches_behind_the_prompt_and_at_the_end(host, inputs):
    asked = inputs[:1]
    p = host.open([asked[0].image], [asked[0].question]).run(UNCOMPRESSED)
    p.decode(max_new_tokens=4, min_new_tokens=4)
    full, less = timed(host, asked, UNCOMPRESSED, 3), timed(host, asked, DECODE, 3)
    assert full.kv_prefill == p.ledger[0].kv_bytes_prefill == less.kv_prefill
    assert full.kv_end == p.ledger[0].kv_bytes_end  # three of the four tokens have been fed
    entry = full.kv_prefill // len(p.rows[0].ids)
    assert full.kv_end == full.kv_prefill + 3 * entry
    visual = p.counts["layers"][0][0]
    assert less.kv_end == full.kv_end - entry * (visual - keep_count(visual, 0.5))


def test_without_tokens_nothing_is_decoded(host, inputs):
    found = timed(host, inputs[:2], BLIND, 0)
    assert found.token is None and found.kv_end == found.kv_prefill and [len(ids) for ids in found.said] == [1, 1]


def test_a_pair_is_shares_and_bytes_a_row(host, inputs, monkeypatch):
    told = {UNCOMPRESSED: walls.Times(2.0, 0.5, 800, 1000, []), RANDOM: walls.Times(1.0, 0.25, 400, 600, [])}
    monkeypatch.setattr(walls, "timed", lambda host, asked, plan, tokens: told[plan])
    assert paired(host, inputs[:4], RANDOM, 3) == Wall(0.5, 0.5, 100, 150)


def test_times_are_medians_and_bytes_means():
    rounds = [Wall(0.5, 0.4, 10, 20), Wall(0.6, 0.9, 10, 20), Wall(0.9, 0.5, 40, 50)]
    assert median(rounds) == Wall(0.6, 0.5, 20, 30)
    assert median([Wall(0.5, None, 10, 10)]) == Wall(0.5, None, 10, 10)


def test_times_are_kept_for_this_machine_and_number_of_rounds(host, inputs, tmp_path, opened):
    path, some = tmp_path / "walls.json", inputs[:2]
    first = wall_times(host, some, [UNCOMPRESSED, RANDOM], 2, path)
    assert set(first) == {UNCOMPRESSED, RANDOM} and all(each[1].first > 0 for each in first.values())
    assert len(opened) == 1 + 2 * 2 * 2
    assert wall_times(host, some, [UNCOMPRESSED, RANDOM], 2, path) == first and len(opened) == 9
    more = wall_times(host, some, [RANDOM, STRIDE], 2, path)
    assert more[RANDOM] == first[RANDOM] and len(opened) == 9 + 5
    wall_times(host, some, [RANDOM], 1, path)
    assert len(opened) == 14 + 3


def test_plans_that_decode_do_so_at_every_batch_and_the_others_are_timed_at_the_first(host, inputs, tmp_path, opened):
    path = tmp_path / "walls.json"
    found = wall_times(host, inputs[:5], [RANDOM, DECODE], 2, path, (1, 3), {DECODE})
    assert list(found[RANDOM]) == [1] and found[RANDOM][1].token is None
    assert list(found[DECODE]) == [1, 3] and all(wall.token > 0 for wall in found[DECODE].values())
    assert [len(rows) for rows in opened] == [1] * 9 + [3] * 5
    questions = [each.question for each in inputs[:5]]
    assert opened[-4] == questions[:3] and opened[-2] == [*questions[3:], questions[0]], "rounds go on where they were"
    assert found[DECODE][3].kv_end > found[DECODE][3].kv_prefill / 2
    stored = json.loads(path.read_text())
    assert stored["about"]["tokens"] == TOKENS and set(stored["times"]) == {"1", "3"}
    again = wall_times(host, inputs[:5], [RANDOM], 2, path, (1, 3), {RANDOM})
    assert len(opened) == 14 + 2 * 5, "what was timed up to the first token alone is timed anew when it shall decode"
    assert list(again[RANDOM]) == [1, 3]
