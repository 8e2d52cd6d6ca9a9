"""Videos from outside: some frames of a file, within limits, whatever is in it.

    clip = frames("talk.mp4", n=16)               # 16 frames at even distances
    clip = frames("talk.mp4", fps=1.0, n=64)      # one for each second, at most 64
    many, clips = windows("talk.mp4", fps=1.0)    # the same frames as clips of 16, one at a time

The packets are listed first, without decoding; then only the way to the wanted frames is decoded, frame by frame, and
nothing but the wanted ones is kept.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from foveate.tasks.clip import Clip, VideoError, middles
from foveate.tasks.images import MAX_PIXELS

FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "ivf", "h264", "hevc", "gif")
"""Containers that are opened at all. Among what is not are playlists, which name other files and hosts."""

SEEKABLE = ("mov", "matroska")
"""Containers with an index of their key frames; the others are decoded from the start."""

WORTH_A_SEEK = 16  # frames between here and the key frame before the next wanted one

MAX_CLIP_PIXELS = 256_000_000
"""More pixels than this, over all frames of a clip (768 MB), are refused before they are decoded."""

SLACK = 1e-3  # seconds: containers round times to milliseconds


def frames(
    path: str | Path,
    n: int | None = None,
    fps: float | None = None,
    *,
    side: int | None = None,
    root: str | Path | None = None,
) -> Clip:
    """Frames of a video at even distances; the same call gives the same frames.

    Args:
        path: the file.
        n: how many: the middles of n equal parts of the video's frames. A shorter video gives all it has.
        fps: instead, the frame shown at 0, 1/fps, 2/fps ... seconds, each once; with `n`, at most n of those.
        side: longest side in pixels; larger frames are shrunk. None = as they are.
        root: folder that `path` starts from (an absolute path stands for itself); None = the working folder.
    Raises:
        ValueError: neither `n` nor `fps`, or one that is not positive.
        VideoError: not there, no video of a known format, damaged, or too many pixels.
    """
    place, index, which = _listed(path, n, fps, side, root)
    with _told(path):
        return _clip(_wanted(place, index, which.tolist()), index, which, side)


def windows(
    path: str | Path,
    n: int | None = None,
    fps: float | None = None,
    *,
    window: int = 16,
    side: int | None = None,
    root: str | Path | None = None,
) -> tuple[int, Iterator[Clip]]:
    """How many frames `frames` would give, and these frames as clips of so many each, the last one fewer.

    A clip is decoded when it is asked for, and nothing of those before is kept: what is held is one clip, and the times
    of the file's frames.

    Args:
        path: as in `frames`, like `n`, `fps`, `side` and `root`; neither `n` nor `fps` = all frames.
        n: see there.
        fps: see there.
        window: frames of a clip.
        side: see there.
        root: see there.
    Raises:
        ValueError, VideoError: as `frames`; of damage further on, when its clip is asked for.
    """
    if window < 1:
        raise ValueError(f"windows: window = {window} must be positive")
    place, index, which = _listed(path, n, fps, side, root, every=True)
    return len(which), _clips(path, place, index, which, window, side)


def _clips(
    path: str | Path, place: Path, index: _Index, which: np.ndarray, window: int, side: int | None
) -> Iterator[Clip]:
    wanted = _wanted(place, index, which.tolist())
    for first in range(0, len(which), window):
        with _told(path):
            clip = _clip(wanted, index, which[first : first + window], side)
        yield clip
        del clip  # or it would be here while the next one is decoded


def _listed(
    path: str | Path, n: int | None, fps: float | None, side: int | None, root: str | Path | None, every: bool = False
) -> tuple[Path, _Index, np.ndarray]:
    """The file, its index, and which frames are asked for. Raises: see `frames`."""
    if n is None and fps is None and not every:
        raise ValueError("frames: give n, fps or both")
    for name, value in (("n", n), ("fps", fps), ("side", side)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"frames: {name} = {value} must be positive")
    with _told(path):
        place = _file(path, root)
        with _opened(place) as container:
            index = _Index.of(container, _stream(container))
        if fps is None:
            return place, index, index.evenly(len(index.seconds) if n is None else n)
        return place, index, index.at_rate(fps, n)


@contextmanager
def _told(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong with a file while this lasts is a `VideoError` that names it."""
    try:
        yield
    except VideoError as error:
        raise VideoError(f"video {str(path)!r}: {error}") from None
    except (av.FFmpegError, OSError, ValueError, OverflowError) as error:  # whatever a hostile file makes of numbers
        raise VideoError(f"video {str(path)!r}: is damaged ({_line(error)})") from error


def _line(error: Exception) -> str:
    """An error's text on one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _file(path: str | Path, root: str | Path | None) -> Path:
    """The file as an absolute path, so that its name is never read as a protocol. Raises: VideoError."""
    place = Path(path) if root is None else Path(root) / path
    try:
        there = place.is_file()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
        raise VideoError(getattr(error, "strerror", None) or str(error)) from error
    if not there:
        raise VideoError("no such file" if root is None else f"not found under {root}")
    if not place.stat().st_size:
        raise VideoError("is empty")
    return place.resolve()


def _opened(place: Path) -> InputContainer:
    """The file, read by the listed demuxers alone and without a network. Raises: VideoError."""
    limits = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    try:
        return av.open(str(place), options=limits, metadata_errors="replace")
    except av.FFmpegError as error:
        known = ", ".join(FORMATS)
        raise VideoError(f"not a video of a known format ({known}), or damaged ({_line(error)})") from error


def _stream(container: InputContainer) -> VideoStream:
    """The first moving picture, ready to be decoded; a cover is none. Raises: VideoError."""
    moving = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not moving:
        raise VideoError("holds no video")
    stream, codec = moving[0], moving[0].codec_context
    if codec is None:
        raise VideoError("holds video of an unknown codec")
    if codec.width * codec.height > MAX_PIXELS:
        raise VideoError(f"has frames of {codec.width} x {codec.height} pixels, the limit is {MAX_PIXELS}")
    codec.options = {"max_pixels": str(MAX_PIXELS)}  # for streams that grow
    codec.thread_count = 1  # workers are what runs side by side
    return stream


@dataclass(frozen=True)
class _Index:
    """When the frames of a stream are shown.

    Attributes:
        pts: of each frame, ascending, in the stream's units; None where the container keeps no times, as a raw stream.
        keys: places in `pts` of the key frames, ascending; empty where they are not to be relied on.
        seconds: (N,) float64, from the first frame on.
        duration: seconds.
    """

    pts: list[int] | None
    keys: list[int]
    seconds: np.ndarray
    duration: float

    @classmethod
    def of(cls, container: InputContainer, stream: VideoStream) -> _Index:
        """Lists the packets; decodes nothing. Raises: VideoError."""
        times: dict[int, bool] = {}  # pts -> whether a key frame
        seen, shown, timed, end = 0, 0, True, None
        for packet in container.demux(stream):
            if not packet.size:  # the end
                continue
            seen += 1
            if packet.is_corrupt:
                raise VideoError(f"is damaged or cut off at packet {seen}")
            if packet.is_discard:  # decoded for what follows, never shown
                continue
            shown += 1
            if packet.pts is None:
                timed = False
                continue
            times[packet.pts] = packet.is_keyframe
            if packet.duration and (end is None or packet.pts + packet.duration > end):
                end = packet.pts + packet.duration
        if not shown:
            raise VideoError("holds no frame")
        if container.format.name.startswith("mov") and seen < stream.frames:
            raise VideoError(f"is cut off: {seen} of {stream.frames} frames are there")
        if not timed:
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            return cls(None, [], np.arange(shown) / rate, shown / rate)
        pts = sorted(times)
        seconds = (np.array(pts, np.float64) - pts[0]) * float(stream.time_base)
        step = seconds[-1] / (len(pts) - 1) if len(pts) > 1 else 0.0  # for the last frame, where nothing is said
        ends = seconds[-1] + step if end is None else (end - pts[0]) * float(stream.time_base)
        duration = max(float(ends), float(seconds[-1]))
        seekable = container.format.name.split(",")[0] in SEEKABLE
        return cls(pts, [i for i, time in enumerate(pts) if times[time]] if seekable else [], seconds, duration)

    def evenly(self, n: int) -> np.ndarray:
        """At most n frames: the middles of n equal parts."""
        return middles(n, len(self.seconds))

    def at_rate(self, fps: float, most: int | None) -> np.ndarray:
        """The frames shown at 0, 1/fps, 2/fps ..., each once; thinned out evenly where they are more than `most`."""
        # frame i is shown from edge i to edge i + 1, counted in steps of 1 / fps: a whole number in between asks for it
        edges = np.ceil((np.append(self.seconds, self.duration) - SLACK) * fps)
        edges[-1] = max(edges[-1], 1.0)
        which = np.flatnonzero(edges[:-1] < edges[1:])
        return which if most is None else which[middles(most, len(which))]


def _clip(wanted: Iterator[VideoFrame], index: _Index, which: np.ndarray, side: int | None) -> Clip:
    """The frames at these places, the next ones that are wanted. Raises: VideoError."""
    frames = _read(islice(wanted, len(which)), index, which, side)
    return Clip(frames, index.seconds[which], index.duration, len(index.seconds))


def _read(wanted: Iterator[VideoFrame], index: _Index, which: np.ndarray, side: int | None) -> np.ndarray:
    """(T, H, W, 3) uint8. Raises: VideoError."""
    out: np.ndarray | None = None
    for number, frame in enumerate(wanted):
        if frame.is_corrupt:
            raise VideoError(f"is damaged at {index.seconds[which[number]]:.3f} s")
        if out is None:
            height, width = _size(frame, side)
            if len(which) * height * width > MAX_CLIP_PIXELS:
                held = f"{len(which)} frames of {width} x {height} pixels"
                raise VideoError(f"{held} are above the limit of {MAX_CLIP_PIXELS}: ask for fewer, or give side")
            out = np.empty((len(which), height, width, 3), np.uint8)
        picture = Image.fromarray(_turned(_rgb(frame), frame))
        if picture.size != out.shape[2:0:-1]:  # to be shrunk, or a stream that changes its size
            picture = picture.resize(out.shape[2:0:-1], Image.Resampling.BICUBIC)
        out[number] = np.asarray(picture)
    return out


def _wanted(place: Path, index: _Index, which: Sequence[int]) -> Iterator[VideoFrame]:
    """The frames at ascending places, each with the times of the index.

    It goes straight to a key frame that is far ahead. A seek that does not meet that very frame is not believed: the
    file is then decoded from its start.
    """
    done = 0
    if index.keys:
        with _opened(place) as container:
            for frame in _with_seeks(container, index, which):
                if frame is None:
                    break
                done += 1
                yield frame
    if done < len(which):
        with _opened(place) as container:
            yield from _in_order(container, index, which[done:])


def _with_seeks(container: InputContainer, index: _Index, which: Sequence[int]) -> Iterator[VideoFrame | None]:
    """See `_wanted`; None, and the end, where a seek went wrong."""
    stream, here = _stream(container), 0
    decoding = container.decode(stream)
    for at in which:
        key = index.keys[max(bisect_right(index.keys, at) - 1, 0)]
        met = key - here <= WORTH_A_SEEK
        if not met:
            container.seek(index.pts[key], stream=stream)
            decoding = container.decode(stream)
        found = None
        for frame in decoding:
            met = met or frame.pts == index.pts[key]
            if frame.pts is None or frame.pts >= index.pts[at]:
                found = frame
                break
        if found is None or not met or found.pts != index.pts[at]:
            yield None
            return
        here = at + 1
        yield found


def _in_order(container: InputContainer, index: _Index, which: Sequence[int]) -> Iterator[VideoFrame]:
    """See `_wanted`, decoding every frame. A frame that the decoder leaves out is replaced by the next one, or by the
    last one at the end."""
    decoding, count, frame = container.decode(_stream(container)), -1, None
    for at in which:
        while frame is None or (count < at if index.pts is None else frame.pts is None or frame.pts < index.pts[at]):
            following = next(decoding, None)
            if following is None:
                break
            frame, count = following, count + 1
        if frame is None:
            raise VideoError("holds no frame that can be decoded")
        yield frame


def _size(frame: VideoFrame, side: int | None) -> tuple[int, int]:
    """Height and width of a frame as it will be given."""
    height, width = frame.height, frame.width
    if _matrix(frame)[0, 0] == 0:  # a quarter turn
        height, width = width, height
    scale = 1.0 if side is None else min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _rgb(frame: VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8 as it is stored; transparent parts become white."""
    if not any(component.is_alpha for component in frame.format.components):
        return frame.to_ndarray(format="rgb24")
    pixels = frame.to_ndarray(format="rgba").astype(np.uint16)
    alpha = pixels[..., 3:]
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _matrix(frame: VideoFrame) -> np.ndarray:
    """(2, 2) of -1, 0 and 1: where the axes of a stored frame go when it is shown, x' = x a + y c, y' = x b + y d."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return np.eye(2, dtype=np.int64)
    (a, b, _), (c, d, _), _ = np.frombuffer(bytes(data), np.int32).reshape(3, 3).astype(np.int64)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return np.array([[-1 if a < 0 else 1, 0], [0, -1 if d < 0 else 1]])
    return np.array([[0, -1 if b < 0 else 1], [-1 if c < 0 else 1, 0]])


def _turned(pixels: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """A stored frame as it is shown: turned by quarters, mirrored."""
    (a, b), (c, d) = _matrix(frame)
    if a == 0:
        pixels = pixels.transpose(1, 0, 2)
    columns, rows = (a or c), (d or b)
    return np.ascontiguousarray(pixels[::rows, ::columns])
