"""Large JPEGs are decoded at a half, a quarter or an eighth of their sides: libjpeg can.

A camera's 12 megapixels cost ten times what a small tower does, nearly all of it for pixels that
the resize to 224 averages away. What is left keeps at least three times the square's sides; the
square then differs from open_clip's by half a grey level, root mean square.
"""

from __future__ import annotations

from edgeladder.runtime.pictures.decode_cost import jpeg_frame

SCALES = (1, 2, 4, 8)  # by what libjpeg can divide sides
LARGE_PIXELS = 2_000_000  # smaller pictures are decoded whole, as open_clip does
LEAST_SIDES = 3  # times the tower's square that a reduced picture still has,
FEWEST_SIDES = 2  # and where memory is short


def large_scale(content: bytes, side: int) -> int:
    """By what a picture's sides are divided while it is decoded, if memory asks for no more.

    Args:
        content: the file's bytes.
        side: of the tower's square.

    Returns:
        2, 4 or 8 for a large JPEG; 1 for any other picture, and what is none.
    """
    frame = jpeg_frame(content)
    if frame is None or frame[0] * frame[1] <= LARGE_PIXELS:
        return 1
    fitting = [scale for scale in SCALES if min(frame) >= LEAST_SIDES * side * scale]
    return max(fitting, default=1)
