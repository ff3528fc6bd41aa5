"""Frames into animations: a strip of statistics, marks where something happened, several episodes side by side.

    frames = annotate(Clip("recorded", frames, {"success": "yes"}, {"near miss": (12, 13)}))
    gif, mp4 = to_gif(frames, 10.0), to_mp4(frames, 10.0)

Pillow draws (matplotlib depends on it), imageio's bundled ffmpeg encodes H.264.
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

STRIP_HEIGHT: Final = 44  # pixels under the picture
TIMELINE_HEIGHT: Final = 12
GAP: Final = 8
LEAST_WIDTH: Final = 200  # narrower pictures are centred in this
MOST_GIF_COLOURS: Final = 128
INK, PAPER, MUTED, TRACK = (27, 31, 36), (255, 255, 255), (87, 96, 106), (216, 222, 228)
# by order of the kinds in `Clip.marks`; told apart by their letters as well
MARK_COLOURS: Final = ((179, 64, 26), (110, 76, 158), (0, 104, 168), (154, 103, 0))


@dataclass(frozen=True)
class Clip:
    """One episode to be shown."""

    title: str
    frames: tuple[np.ndarray, ...]  # (H, W, 3) uint8 each, one a step
    statistics: Mapping[str, str] = field(default_factory=dict)  # label -> value, shown below the picture
    marks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # "near miss" -> frames in which it happens


def annotate(clip: Clip, length: int | None = None) -> list[np.ndarray]:
    """The clip with title, statistics and timeline as (H', W', 3) uint8 frames of even size.

    The last frame is held until `length` frames. Raises ValueError for no frames or frames of unequal or wrong shape.
    """
    shapes = {np.shape(frame) for frame in clip.frames}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3 or next(iter(shapes))[2] != 3:
        raise ValueError(f"frames must all be (H, W, 3), got {sorted(shapes) or 'none'}")
    total = max(len(clip.frames), length or 0)
    drawn = [_compose(clip, index) for index in range(len(clip.frames))]
    return drawn + [drawn[-1]] * (total - len(drawn))


def side_by_side(clips: Sequence[Clip]) -> list[np.ndarray]:
    """The clips beside each other, all as long as the longest; a shorter one holds its last frame."""
    if not clips:
        raise ValueError("nothing to show side by side")
    length = max(len(clip.frames) for clip in clips)
    columns = [annotate(clip, length) for clip in clips]
    height = max(column[0].shape[0] for column in columns)
    return [_even(_row([_padded(column[i], height) for column in columns])) for i in range(length)]


def to_gif(frames: Sequence[np.ndarray], frames_per_second: float) -> bytes:
    """A looping GIF; one palette for all frames, so that nothing flickers and unchanged parts cost nothing."""
    from PIL import Image

    sample = np.concatenate([frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, 6).astype(int))])
    palette = Image.fromarray(sample).quantize(MOST_GIF_COLOURS, dither=Image.Dither.NONE)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    milliseconds = max(20, round(1000 / frames_per_second / 10) * 10)  # GIF counts in hundredths of a second
    pictures[0].save(
        file,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=milliseconds,
        loop=0,
        optimize=False,
        disposal=1,
    )
    return file.getvalue()


def to_mp4(frames: Sequence[np.ndarray], frames_per_second: float) -> bytes:
    """H.264 video that every browser plays."""
    import imageio.v2 as imageio

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        writer: Any = imageio.get_writer(
            path, format="FFMPEG", fps=frames_per_second, codec="libx264", pixelformat="yuv420p", macro_block_size=2,
            ffmpeg_params=["-crf", "26", "-movflags", "+faststart"],
        )  # fmt: skip
        with writer:
            for frame in frames:
                writer.append_data(frame)
        return path.read_bytes()


def _compose(clip: Clip, index: int) -> np.ndarray:
    """Title above, picture, statistics and timeline below."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(np.asarray(clip.frames[index], dtype=np.uint8))
    width = max(LEAST_WIDTH, picture.width)
    image = Image.new("RGB", (width, 24 + picture.height + STRIP_HEIGHT), PAPER)
    image.paste(picture, ((width - picture.width) // 2, 24))
    draw = ImageDraw.Draw(image)
    draw.text((6, 4), clip.title, fill=INK, font=_font(14))
    top = 24 + picture.height
    now = [kind for kind, frames in clip.marks.items() if index in frames]
    colours = dict(zip(clip.marks, MARK_COLOURS * len(clip.marks), strict=False))
    if now:
        colour = colours[now[0]]
        draw.rectangle((0, 24, width - 1, top - 1), outline=colour, width=3)
        draw.text((width - 6, 4), " · ".join(now), fill=colour, font=_font(13), anchor="ra")
    text = f"step {index}   " + "   ".join(f"{label} {value}" for label, value in clip.statistics.items())
    draw.text((6, top + 5), _fitting(text, width - 12), fill=INK, font=_font(12))
    _timeline(draw, clip, index, (6, top + 26, width - 7, top + 26 + TIMELINE_HEIGHT), colours)
    return _even(np.asarray(image))


def _timeline(
    draw: Any, clip: Clip, index: int, box: tuple[int, int, int, int], colours: Mapping[str, tuple[int, ...]]
) -> None:
    left, top, right, bottom = box
    last = max(1, len(clip.frames) - 1)

    def x(step: int) -> int:
        return left + (right - left) * step // last

    draw.rectangle((left, top + 4, right, bottom - 4), fill=TRACK)
    draw.rectangle((left, top + 4, x(index), bottom - 4), fill=MUTED)
    for kind, frames in clip.marks.items():
        for step in frames:
            draw.line((x(step), top, x(step), bottom), fill=colours[kind], width=2)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fitting(text: str, width: int) -> str:
    """Cut so that it fits `width` pixels."""
    font = _font(12)
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…"
    return text


def _padded(frame: np.ndarray, height: int) -> np.ndarray:
    return np.pad(frame, ((0, height - frame.shape[0]), (0, 0), (0, 0)), constant_values=255)


def _row(frames: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.full((frames[0].shape[0], GAP, 3), 255, dtype=np.uint8)
    parts = [part for frame in frames for part in (frame, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _even(frame: np.ndarray) -> np.ndarray:
    """Width and height rounded up to even numbers, which H.264 asks for."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)
