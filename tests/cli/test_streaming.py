"""`foveate run --stream`: a long video with a memory of bounded size, and every kind of bad input as one line."""

from __future__ import annotations

import json

import pytest
from filming import write_film

from foveate.compressors.learned import untrained
from foveate.compressors.registry import make
from foveate.models.learned import save
from foveate.plans.plan import UNCOMPRESSED
from foveate.tasks.video import frames


@pytest.fixture(scope="module")
def film(serving, tmp_path_factory):
    """A video of 30 frames."""
    pictures = [serving.tiny.picture(seed, 32, 48) for seed in range(30)]
    return write_film(tmp_path_factory.mktemp("films") / "film.mkv", pictures)


@pytest.fixture
def asked(folder, film):
    """Arguments of a call that is right so far."""
    return ["--video", film, "--question", "what is this ?", "--model", folder, "--max-new-tokens", 4]


def test_a_stream_answers_and_says_what_the_whole_video_would_have_cost(call, asked, host, film):
    found = json.loads(call("run", *asked, "--stream", "moviechat", "--memory", 5, "--window", 7, "--json").out)
    p = host.stream(frames(film, 30).frames, "what is this ?", "moviechat", memory=5, frames=30)
    assert [found["answer"]] == p.decode(max_new_tokens=4) and found["reason"] == "stream"
    assert found["tokens"] == {"input": 480, "encoder": 480, "outside": 480} | dict.fromkeys(
        ("projector", "prefill", "decode"), 80
    )
    q = host.open([frames(film, 30)], ["what is this ?"])
    whole = host.forecast(UNCOMPRESSED, q.shapes[0], new_tokens=len(p.generated[0]))
    assert found["flops"]["uncompressed"] == whole.total and found["flops"]["total"] == p.ledger[0].total
    assert found["label"] == "projector:moviechat@0.1667" and 0 < found["share"] < 1


def test_a_keep_ratio_fewer_frames_fields_of_the_method_and_a_plan_behind(call, asked):
    few = json.loads(call("run", *asked, "--stream", "moviechat@0.25", "--frames", 8, "--json").out)
    assert few["tokens"]["encoder"] == 128 and few["tokens"]["projector"] == 32
    dials = ["--stream", "dtd:tau=1.0,drift=true", "--memory", 2, "--plan", "prefill:fastv@0.5 + decode:look_m@0.5"]
    got = json.loads(call("run", *asked, *dials, "--json").out)
    assert [got["tokens"][stage] for stage in ("projector", "prefill", "decode")] == [32, 16, 8]
    lines = call("run", *asked, "--stream", "moviechat:merge=1").out.splitlines()
    assert lines[1] == "plan       projector:moviechat@0.0667  (by stream)"  # two windows, one frame each


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--stream", "evs"), ("'evs' takes no video window by window", "dtd", "moviechat")),
        (("--stream", "moviechat:size=3"), ("moviechat has no 'size'", "window, short, merge")),
        (("--stream", "moviechat:window=1.5"), ("moviechat: window = '1.5' is not a whole number",)),
        (("--stream", "moviechat:raw=1"), ("moviechat: raw = '1' is not true or false",)),
        (("--stream", "moviechat:window=20"), ("a window of 20 frames is above short = 18",)),
        (("--stream", "moviechat@x"), ("'x' is no keep ratio in (0, 1]",)),
        (("--stream", "moviechat@0.5", "--memory", 4), ("--memory", "keep ratio")),
        (("--stream", "moviechat", "--memory", 0), ("--memory: 0 is below 1",)),
        (("--stream", "moviechat", "--frames", 0), ("--frames: 0 is below 1",)),
        (("--stream", "moviechat", "--budget", 0.5), ("--stream: goes without --budget",)),
        (("--stream", "moviechat", "--plan", "outside:visionzip@0.5"), ("stages prefill and decode",)),
        (("--stream", "moviechat", "--plan", "blind"), ("stages prefill and decode",)),
        (
            (
                "--stream",
                "moviechat@0.001",
            ),
            ("moviechat: cannot hold 1 of 480 tokens, the least is 16",),
        ),
        (("--memory", 4), ("are for --stream",)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_bad_input_is_one_line(call, asked, given, words):
    assert call("run", *asked, *given).refused("run", *words)


def test_a_stream_needs_a_video_that_is_there(call, folder, photo, tmp_path):
    rest = ["--question", "what ?", "--model", folder, "--stream", "moviechat"]
    assert call("run", "--image", photo, *rest).refused("run", "--stream: needs --video FILE, and no --image")
    assert call("run", "--video", tmp_path / "no.mp4", *rest).refused("run", "no.mp4", "no such file")


def test_windows_in_the_decoder_need_weights_and_a_share(call, asked, host, tmp_path):
    refusals = [
        (("--stream", "video_xl"), ("video_xl needs the share that stays, such as video_xl@0.125",)),
        (("--stream", "video_xl:network=1@0.5"), ("video_xl has no 'network'; it takes frames, rank",)),
        (("--stream", "video_xl@0.125"), ("--stream: video_xl: has no weights for this host",)),
    ]
    for given, words in refusals:
        assert call("run", *asked, *given).refused("run", *words)
    save(tmp_path, host, "prefill", "video_xl", untrained(make("prefill", "video_xl"), host.widths).network, {})
    dials = ["--learned", tmp_path, "--stream", "video_xl:frames=2@0.125", "--plan", "decode:random@0.5"]
    got = json.loads(call("run", *asked, *dials, "--json").out)
    assert [got["tokens"][stage] for stage in ("encoder", "projector", "prefill", "decode")] == [480, 480, 60, 30]
    assert got["label"] == "prefill:video_xl@0.125 + decode:random@0.5" and got["reason"] == "stream"
    late = ["--learned", tmp_path, "--stream", "video_xl@0.5", "--plan", "prefill:fastv@0.5"]
    assert call("run", *asked, *late).refused("run", "plan, prefill: fastv comes too late")
    assert call("run", *asked, *late[:2], "--stream", "video_xl@0.3").refused("run", "needs keep = 1/2, 1/3 ...")
