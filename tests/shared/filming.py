"""Video files whose frames come back as they were given."""

import av
import numpy as np


def write_film(path, pictures, rate=4):
    """A file of pictures (h, w, 3) uint8 of one size, a frame each, `rate` a second; gives its path back."""
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=rate, width=width, height=height, pix_fmt="bgr0")
        for pixels in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            out.mux(stream.encode(frame.reformat(format="bgr0")))
        out.mux(stream.encode())
    return path
