"""Frames of videos: which ones, how they are turned, and the one line that says what is wrong with a file."""

import random
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from foveate.tasks import video
from foveate.tasks.base import TaskDataError
from foveate.tasks.video import VideoError, frames, windows

pytestmark = pytest.mark.fast
KINDS = {
    "a.mp4": "libx264",
    "a.mkv": "libx264",
    "a.webm": "libvpx-vp9",
    "a.avi": "mpeg4",
    "a.ts": "libx264",
    "a.gif": "gif",
    "raw.h264": "libx264",
}
STEP = 12  # of the grey level, from frame to frame


def write(path, count=20, rate=10, size=(64, 48), pts=None, codec=None, gop=5, turn=None, paint=None):
    """A clip whose frame i is grey with level STEP * i, or what `paint(i)` gives."""
    codec = codec or KINDS.get(path.name, "libx264")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = gop, 4_000_000
        if codec in ("libx264", "mpeg4"):
            stream.codec_context.max_b_frames = 2  # packets do not come in the order in which frames are shown
        if codec == "libx264":
            stream.codec_context.options = {"x264-params": "log-level=none"}
        if turn is not None:
            stream.set_display_matrix(turn)
        for i in range(count):
            pixels = np.full((size[1], size[0], 3), STEP * i % 256, np.uint8) if paint is None else paint(i)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (i if pts is None else pts[i]), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers(clip):
    """Which frames these are, by their grey level."""
    return [round(float(frame.mean()) / STEP) for frame in clip.frames]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def kinds(folder):
    return {name: write(folder / name) for name in KINDS}


@pytest.fixture(scope="module")
def long(folder):
    """150 frames with a key frame every 25; the level says the frame up to a turn of 21."""
    return write(folder / "long.mp4", 150, gop=25, paint=lambda i: np.full((48, 64, 3), STEP * (i % 21), np.uint8))


@pytest.mark.parametrize("name", KINDS)
def test_n_frames_are_the_middles_of_equal_parts_in_every_container(kinds, name):
    clip = frames(kinds[name], n=5)
    assert clip.frames.shape == (5, 48, 64, 3) and clip.frames.dtype == np.uint8
    assert (numbers(clip), clip.total) == ([2, 6, 10, 14, 18], 20)
    rate = 10 if name != "raw.h264" else 25  # a raw stream keeps no times
    assert clip.seconds == pytest.approx(np.array([2, 6, 10, 14, 18]) / rate)
    assert clip.duration == pytest.approx(20 / rate)


@pytest.mark.parametrize(("n", "expected"), [(1, [10]), (2, [5, 15]), (19, None), (20, range(20)), (500, range(20))])
def test_every_frame_comes_once_however_many_are_asked_for(kinds, n, expected):
    found = numbers(frames(kinds["a.mp4"], n=n))
    assert found == (list(expected) if expected is not None else [i for i in range(20) if i != 9])


@pytest.mark.parametrize(
    ("fps", "n", "expected"),
    [(1, None, [0, 10]), (2, None, [0, 5, 10, 15]), (10, None, range(20)), (0.01, None, [0]), (1e9, None, range(20))]
    + [(2, 2, [5, 15]), (10, 4, [2, 7, 12, 17]), (1, 8, [0, 10])],
)
def test_a_rate_gives_the_frames_shown_at_its_times_thinned_out_to_n(kinds, fps, n, expected):
    for name in ("a.mp4", "a.mkv"):  # the second rounds times to milliseconds
        assert numbers(frames(kinds[name], n=n, fps=fps)) == list(expected)


def test_thirty_frames_a_second_at_their_own_rate_are_all_frames(folder):
    for name in ("thirty.mp4", "thirty.mkv"):
        assert len(frames(write(folder / name, 40, rate=30), fps=30).seconds) == 40


def test_times_are_those_of_the_file_however_uneven(folder):
    pts = [4, 5, 6, 20, 40, 41]  # starts late, stands still, goes on
    clip = frames(write(folder / "uneven.mkv", 6, pts=pts), n=6)
    assert numbers(clip) == list(range(6))
    assert clip.seconds == pytest.approx((np.array(pts) - 4) / 10)
    clip = frames(folder / "uneven.mkv", fps=1)  # at 2 and 3 s the frame of 1.6 s is still shown
    assert numbers(clip) == [0, 2, 3] and clip.seconds == pytest.approx([0.0, 0.2, 1.6])


def test_a_video_of_one_frame_is_a_video(folder):
    write(folder / "one.mp4", 1)
    assert frames(folder / "one.mp4", n=8).frames.shape == (1, 48, 64, 3)
    assert frames(folder / "one.mp4", fps=3).seconds.tolist() == [0.0]


class TestSeeks:
    def decoded(self, monkeypatch, path, **asked):
        """The clip, and how many frames were decoded for it."""
        count = 0
        decode = av.container.InputContainer.decode

        class Counting:
            def __init__(self, container):
                self.container = container

            def __enter__(self):
                return self

            def __exit__(self, *stop):
                self.container.close()

            def __getattr__(self, name):
                return getattr(self.container, name)

            def decode(self, stream):
                nonlocal count
                for frame in decode(self.container, stream):
                    count += 1
                    yield frame

        opened = video._opened
        monkeypatch.setattr(video, "_opened", lambda place: Counting(opened(place)))
        clip = frames(path, **asked)
        monkeypatch.undo()
        return clip, count

    @pytest.mark.parametrize("n", [1, 2, 3, 7, 40, 150])
    def test_frames_behind_a_seek_are_those_of_decoding_from_the_start(self, long, monkeypatch, n):
        clip, count = self.decoded(monkeypatch, long, n=n)
        monkeypatch.setattr(video, "SEEKABLE", ())
        plain, all_of_them = self.decoded(monkeypatch, long, n=n)
        assert np.array_equal(clip.frames, plain.frames) and np.array_equal(clip.seconds, plain.seconds)
        assert numbers(clip) == [(2 * i + 1) * 150 // (2 * n) % 21 for i in range(n)]
        if n <= 3:
            assert count <= n * 26 < all_of_them

    def test_a_seek_that_lands_elsewhere_is_not_believed(self, long, monkeypatch):
        monkeypatch.setattr(video, "WORTH_A_SEEK", 0)
        index = video._Index.of

        def wrong(container, stream):
            """An index that takes frames for key frames which are none."""
            found = index(container, stream)
            found.keys[:] = range(0, found.keys[-1], 7)
            return found

        monkeypatch.setattr(video._Index, "of", wrong)
        assert numbers(frames(long, n=5)) == [15 % 21, 45 % 21, 75 % 21, 105 % 21, 135 % 21]


class TestOrientation:
    @pytest.mark.parametrize(
        ("matrix", "turned"),
        [
            ((1, 0, 0, 1), lambda a: a),
            ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),  # a telephone held upright: a quarter turn clockwise
            ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
            ((0, -1, 1, 0), lambda a: np.rot90(a, 1)),
            ((-1, 0, 0, 1), lambda a: a[:, ::-1]),  # a mirror
            ((0, 1, 1, 0), lambda a: a.transpose(1, 0, 2)),
        ],
    )
    def test_frames_are_turned_as_the_file_says(self, folder, matrix, turned):
        corners = np.zeros((48, 64, 3), np.uint8)
        corners[:24, :32], corners[:24, 32:], corners[24:, :32] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
        a, b, c, d = (65536 * value for value in matrix)
        path = folder / "turned.mp4"
        write(path, 3, paint=lambda i: corners, turn=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
        got = frames(path, n=1).frames[0]
        expected = turned(corners)
        assert got.shape == expected.shape
        inner = np.ix_(*(np.r_[4 : n // 2 - 4, n // 2 + 4 : n - 4] for n in got.shape[:2]))  # chroma bleeds at edges
        assert np.abs(got[inner].astype(int) - expected[inner]).max() < 12


class TestSizes:
    def test_large_frames_are_shrunk_to_the_asked_side_and_small_ones_are_not_grown(self, kinds):
        clip = frames(kinds["a.mp4"], n=3, side=32)
        assert clip.frames.shape == (3, 24, 32, 3) and numbers(clip) == [3, 10, 16]
        assert frames(kinds["a.mp4"], n=1, side=500).frames.shape == (1, 48, 64, 3)

    def test_too_many_pixels_are_refused_before_they_are_decoded(self, kinds, monkeypatch):
        monkeypatch.setattr(video, "MAX_CLIP_PIXELS", 3 * 48 * 64)
        assert len(frames(kinds["a.mp4"], n=3).frames) == 3
        with pytest.raises(VideoError, match="4 frames of 64 x 48 pixels are above the limit of 9216: ask for fewer"):
            frames(kinds["a.mp4"], n=4)
        assert len(frames(kinds["a.mp4"], n=4, side=40).frames) == 4

    def test_a_frame_too_large_is_refused_by_the_header(self, kinds, monkeypatch):
        monkeypatch.setattr(video, "MAX_PIXELS", 3000)
        with pytest.raises(VideoError, match="has frames of 64 x 48 pixels, the limit is 3000"):
            frames(kinds["a.mp4"], n=1)

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
    def test_only_the_wanted_frames_are_kept_in_memory(self, folder):
        shade = lambda i: np.full((480, 640, 3), i % 256, np.uint8)  # noqa: E731
        write(folder / "wide.avi", 120, size=(640, 480), codec="mpeg4", paint=shade)  # 55 MB of decoded frames
        code = (
            "import resource, sys; from foveate.tasks.video import frames\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "frames(sys.argv[1], n=1); before = peak(); frames(sys.argv[1], n=4); print(peak() - before)"
        )
        command = [sys.executable, "-c", code, str(folder / "wide.avi")]
        grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # KiB
        assert grown < 20_000


class TestRefusals:
    @pytest.mark.parametrize("asked", [{}, {"n": 0}, {"n": -3}, {"fps": 0.0}, {"fps": np.nan}, {"n": 1, "side": 0}])
    def test_a_call_that_asks_for_nothing_is_refused(self, kinds, asked):
        with pytest.raises(ValueError, match="^frames: ") as caught:
            frames(kinds["a.mp4"], **asked)
        assert not isinstance(caught.value, VideoError)

    @pytest.mark.parametrize("name", ["gone.mp4", "", "a" * 400, "nul\0.mp4", "http://127.0.0.1/a.mp4"])
    def test_a_missing_file_is_named(self, folder, name):
        with pytest.raises(VideoError, match="^video '"):
            frames(folder / name, n=1)
        with pytest.raises(TaskDataError) as caught:
            frames("b.mp4", n=1, root=folder)
        assert str(caught.value) == f"video 'b.mp4': not found under {folder}"

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "is empty"),
            (b"hello", "not a video of a known format"),
            (
                b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\na.ts\n#EXT-X-ENDLIST\n",
                "not a video of a known format",
            ),
            (b"ffconcat version 1.0\nfile a.mp4\n", "not a video of a known format"),
        ],
    )
    def test_what_is_no_video_or_names_other_files_is_refused(self, kinds, folder, content, reason):
        (folder / "odd.mp4").write_bytes(content)
        with pytest.raises(VideoError, match=rf"odd\.mp4': {reason}") as caught:
            frames(folder / "odd.mp4", n=1)
        assert "\n" not in str(caught.value)

    def test_sound_alone_is_no_video(self, folder):
        with av.open(str(folder / "sound.mkv"), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        with pytest.raises(VideoError, match="holds no video"):
            frames(folder / "sound.mkv", n=1)

    def test_a_cover_is_no_video(self, folder):
        cover = np.full((32, 32, 3), 90, np.uint8)
        with av.open(str(folder / "cover.mp4"), "w") as container:
            sound, picture = container.add_stream("aac", rate=8000), container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(cover, format="rgb24")))
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        with pytest.raises(VideoError, match="holds no video"):
            frames(folder / "cover.mp4", n=1)

    def test_a_file_that_was_cut_off_is_refused(self, kinds, folder):
        data = kinds["a.mp4"].read_bytes()
        (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
        with pytest.raises(VideoError, match=r"cut\.mp4': .*damaged"):
            frames(folder / "cut.mp4", n=2)
        (folder / "cut.mkv").write_bytes(kinds["a.mkv"].read_bytes()[:600])
        with pytest.raises(VideoError, match=r"cut\.mkv'"):
            frames(folder / "cut.mkv", n=2)

    @pytest.mark.parametrize("name", KINDS)
    def test_a_damaged_file_gives_frames_or_one_line(self, kinds, folder, name, capfd):
        data, refused = kinds[name].read_bytes(), 0
        for seed in range(12):
            lot, broken = random.Random(seed), bytearray(data)
            for _ in range(lot.randrange(1, 40)):
                broken[lot.randrange(len(broken))] = lot.randrange(256)
            (folder / "broken").write_bytes(broken)
            try:
                assert frames(folder / "broken", n=3).frames.shape[0] >= 1
            except VideoError as error:
                assert str(error).startswith("video '") and "\n" not in str(error)
                refused += 1
        assert capfd.readouterr().err == ""
        assert refused or name == "a.gif"


def test_the_same_call_gives_the_same_frames(kinds):
    for path in kinds.values():
        one, two = (frames(path, n=7, side=40) for _ in range(2))
        assert np.array_equal(one.frames, two.frames) and np.array_equal(one.seconds, two.seconds)


@pytest.mark.parametrize("window", [1, 4, 50])
@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "raw.h264"])
def test_windows_are_the_same_frames_one_clip_at_a_time(kinds, name, window):
    whole = frames(kinds[name], n=13)
    many, clips = windows(kinds[name], n=13, window=window)
    parts = list(clips)
    assert many == 13 and [len(part.frames) for part in parts[:-1]] == [window] * (len(parts) - 1)
    assert np.array_equal(np.concatenate([part.frames for part in parts]), whole.frames)
    assert np.array_equal(np.concatenate([part.seconds for part in parts]), whole.seconds)
    assert {(part.duration, part.total) for part in parts} == {(whole.duration, whole.total)}


def test_windows_without_a_number_are_all_frames_and_hold_one_clip(long):
    import tracemalloc

    def held(n):
        tracemalloc.start()
        try:
            assert sum(len(clip.frames) for clip in windows(long, n, window=5)[1]) == (n or 150)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    held(5)
    assert held(None) < 1.5 * held(30)  # 120 frames more would be a megabyte, six times as much
    assert [numbers(clip)[0] for clip in windows(long, window=20)[1]] == [20 * i % 21 for i in range(8)]


def test_what_is_wrong_with_windows_is_told_at_once_or_when_the_clip_comes(kinds, folder):
    with pytest.raises(ValueError, match="windows: window = 0 must be positive"):
        windows(kinds["a.mp4"], window=0)
    with pytest.raises(VideoError, match=r"^video .*nothing.mp4': no such file$"):
        windows(folder / "nothing.mp4")
    large = windows(kinds["a.mp4"], window=20)[1]
    before, video.MAX_CLIP_PIXELS = video.MAX_CLIP_PIXELS, 19 * 64 * 48
    try:
        with pytest.raises(VideoError, match=r"^video .*a.mp4': 20 frames of 64 x 48 pixels are above the limit"):
            next(large)
        assert len(next(windows(kinds["a.mp4"], window=19)[1]).frames) == 19
    finally:
        video.MAX_CLIP_PIXELS = before
