"""Frames into animations: a strip of statistics, marks where something happened, several episodes side by side.

    frames = annotate(Clip("recorded", frames, {"success": "yes"}, {"near miss": (12, 13)}))
    gif, mp4 = to_gif(frames, 10.0), to_mp4(frames, 10.0)

Pillow draws (matplotlib depends on it), imageio's bundled ffmpeg encodes H.264.
"""

import io
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.files import scratch
from pipeline.play.demonstrators import Actor
from pipeline.play.filming import film
from pipeline.play.rollouts import from_actor
from pipeline.tasks import Task

FRAMES_PER_SECOND: Final = 20.0  # of an episode that is drawn while it is played
LINE: Final = 16  # pixels
MARGIN: Final = 6
TIMELINE_HEIGHT: Final = 12
SWATCH: Final = 14  # coloured square before a kind of mark, with the gap behind it
SWATCH_ROOM: Final = "    "  # about as wide
ITEM_GAP: Final = "   "
LEGEND_GAP: Final = "     "
GAP: Final = 8
LEAST_WIDTH: Final = 200  # narrower pictures are centred in this
MOST_GIF_COLOURS: Final = 128
MOST_GIF_BYTES: Final = 4_000_000
MOST_FILM_FRAMES: Final = 200  # to draw one takes a tenth of a second where there is no graphics card
MOST_WEBP_FRAMES: Final = 60
MOST_WEBP_PIXELS: Final = 340  # three stand beside each other in the UI
INK, PAPER, MUTED, TRACK = (27, 31, 36), (255, 255, 255), (87, 96, 106), (216, 222, 228)
# by order of the kinds in `Clip.marks`; told apart by their letters as well
MARK_COLOURS: Final = ((179, 64, 26), (110, 76, 158), (0, 104, 168), (154, 103, 0))


@dataclass(frozen=True)
class Clip:
    """One episode to be shown."""

    title: str
    frames: tuple[np.ndarray, ...]  # (H, W, 3) uint8 each
    statistics: Mapping[str, str] = field(default_factory=dict)  # label -> value, shown below the picture
    marks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # "near miss" -> steps at which it happens
    note: str = ""  # what is unusual about it, shown under the title
    steps: tuple[int, ...] = ()  # that the frames show, ascending from 0; none: one a step

    @property
    def shown(self) -> Sequence[int]:
        """The step of every frame."""
        return self.steps or range(len(self.frames))


def check_drawable(task: Task, setting: str, value: int) -> None:
    """Raise BadInput when a setting asks for pictures and the environment cannot be drawn."""
    if value and not task.renders:
        raise BadInput(
            f"{setting} = {value}: the environment of task {task.config.name!r} has no render mode rgb_array; use 0"
        )


def draw_episode(task: Task, episode: Episode, actor: Actor, title: str, length: int = 0) -> list[np.ndarray]:
    """Let somebody play an episode to its end; (H, W, 3) uint8 frames for `save_film` and `to_webp`.

    They are at most `MOST_FILM_FRAMES`: of a longer episode every so many steps are seen. `length` as in `film`.
    """
    seen = film(task, episode, from_actor(actor, task.action_space), MOST_FILM_FRAMES, length=length)
    statistics = {"return": f"{seen.episode_return:.4g}", "steps": str(len(seen.rewards))}
    return annotate(Clip(title, seen.frames, statistics, seen.events, steps=seen.steps))


def save_film(frames: Sequence[np.ndarray], path: Path) -> Path:
    """The file of a film, which is `path` with the ending of its format; a small `.webp` of it lies beside it."""
    ending, content = encode(frames, FRAMES_PER_SECOND)
    file = path.with_name(f"{path.name}.{ending}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.with_suffix(".webp").write_bytes(to_webp(frames, FRAMES_PER_SECOND))
    return file


def annotate(clip: Clip) -> list[np.ndarray]:
    """The clip with title, statistics and timeline as (H', W', 3) uint8 frames of even size.

    Raises ValueError for no frames or frames of unequal or wrong shape.
    """
    layout = _layout(clip)
    return [_drawn(clip, layout, index) for index in range(len(clip.frames))]


def side_by_side(clips: Sequence[Clip]) -> Iterator[np.ndarray]:
    """The clips beside each other at equal steps, one picture after the other; one that is over holds its last frame.

    Where they show different shares of their steps, the coarsest says which are shown.
    """
    if not clips:
        raise ValueError("nothing to show side by side")
    layouts = [_layout(clip) for clip in clips]
    stride = max(clip.shown[1] - clip.shown[0] if len(clip.frames) > 1 else 1 for clip in clips)
    longest = max(clip.shown[-1] for clip in clips)
    columns, drawn = [np.empty(0, np.uint8)] * len(clips), [-1] * len(clips)
    for step in range(0, longest + stride, stride):
        for which, clip in enumerate(clips):
            index = bisect_right(clip.shown, step) - 1
            if index != drawn[which]:  # otherwise it is over, and holds its last frame
                columns[which], drawn[which] = _drawn(clip, layouts[which], index), index
        height = max(len(column) for column in columns)
        padded = [np.pad(c, ((0, height - len(c)), (0, GAP), (0, 0)), constant_values=255) for c in columns]
        yield _even(np.concatenate(padded, axis=1)[:, :-GAP])


def encode(frames: Sequence[np.ndarray], frames_per_second: float, video: str = "auto") -> tuple[str, bytes]:
    """(file ending, bytes): GIF or H.264 as asked for; `auto` takes the GIF if it is small."""
    if video in ("auto", "gif"):
        gif = to_gif(frames, frames_per_second)
        if video == "gif" or len(gif) <= MOST_GIF_BYTES:
            return "gif", gif
    return "mp4", to_mp4(frames, frames_per_second)


def to_gif(frames: Sequence[np.ndarray], frames_per_second: float) -> bytes:
    """A looping GIF; one palette for all frames, so that nothing flickers and unchanged parts cost nothing."""
    sample = np.concatenate([frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, 6).astype(int))])
    palette = Image.fromarray(sample).quantize(MOST_GIF_COLOURS, dither=Image.Dither.NONE)
    first, *others = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    milliseconds = max(20, round(1000 / frames_per_second / 10) * 10)  # GIF counts in hundredths of a second
    file = io.BytesIO()
    first.save(
        file, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0, optimize=False, disposal=1
    )
    return file.getvalue()


def to_webp(frames: Sequence[np.ndarray], frames_per_second: float) -> bytes:
    """A looping WebP that stays small: sampled in time and scaled down, as long as the film of all frames."""
    stride = -(-len(frames) // MOST_WEBP_FRAMES)
    pictures = [Image.fromarray(frame) for frame in frames[::stride]]
    for picture in pictures:
        picture.thumbnail((MOST_WEBP_PIXELS, MOST_WEBP_PIXELS))
    file = io.BytesIO()
    pictures[0].save(
        file, "WEBP", save_all=True, append_images=pictures[1:], duration=round(1000 * stride / frames_per_second),
        loop=0, quality=70, method=0,
    )  # fmt: skip
    return file.getvalue()


def to_mp4(frames: Iterable[np.ndarray], frames_per_second: float) -> bytes:
    """H.264 video that every browser plays."""
    import imageio.v2 as imageio

    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        path = Path(folder) / "clip.mp4"
        writer: Any = imageio.get_writer(
            path, format="FFMPEG", fps=frames_per_second, codec="libx264", pixelformat="yuv420p", macro_block_size=2,
            ffmpeg_params=["-crf", "26", "-preset", "veryfast", "-movflags", "+faststart"],
        )  # fmt: skip
        with writer:
            for frame in frames:
                writer.append_data(frame)
        return path.read_bytes()


def with_poster(frames: Iterable[np.ndarray], frames_per_second: float) -> tuple[bytes, bytes]:
    """The H.264 video, and its last frame as a PNG: what a reader sees who does not play it, or prints the page."""
    last = list[np.ndarray]()

    def seen() -> Iterator[np.ndarray]:
        for frame in frames:
            last[:] = [frame]
            yield frame

    video, file = to_mp4(seen(), frames_per_second), io.BytesIO()
    Image.fromarray(last[0]).quantize(MOST_GIF_COLOURS).save(file, "PNG", optimize=True)
    return video, file.getvalue()


@dataclass(frozen=True)
class _Layout:
    """What stands around the picture, wrapped to its width once for all frames."""

    width: int
    title: tuple[str, ...]
    note: tuple[str, ...]
    statistics: tuple[str, ...]
    legend: tuple[tuple[str, ...], ...]  # lines of kinds of marks

    @property
    def top(self) -> int:
        """Height above the picture, in pixels."""
        return 8 + LINE * (len(self.title) + len(self.note))

    @property
    def below(self) -> int:
        return 6 + LINE * (len(self.statistics) + len(self.legend)) + TIMELINE_HEIGHT + 4


def _layout(clip: Clip) -> _Layout:
    shapes = {np.shape(frame) for frame in clip.frames}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3 or next(iter(shapes))[2] != 3:
        raise ValueError(f"frames must all be (H, W, 3), got {sorted(shapes) or 'none'}")
    width = max(LEAST_WIDTH, np.shape(clip.frames[0])[1])
    room = width - 2 * MARGIN
    step = f"step {clip.shown[-1]} of {clip.shown[-1]}"  # the longest it gets
    statistics = [step, *(f"{label} {value}" for label, value in clip.statistics.items())]
    title = _wrapped(clip.title.split(" "), room, 14, " ")
    note = _wrapped(clip.note.split(" "), room, 12, " ") if clip.note else ()
    kinds = iter(clip.marks)
    entries = [f"{SWATCH_ROOM}{kind}: {len(frames)}" for kind, frames in clip.marks.items()]
    legend = tuple(
        tuple(kind for _, kind in zip(line.split(LEGEND_GAP), kinds, strict=False))
        for line in _wrapped(entries, room - SWATCH, 12, LEGEND_GAP)
    )
    return _Layout(width, title, note, _wrapped(statistics, room, 12, ITEM_GAP), legend)


def _drawn(clip: Clip, layout: _Layout, index: int) -> np.ndarray:
    """A frame from top to bottom: title and note, picture, statistics, legend of the marks, timeline."""
    picture = Image.fromarray(np.asarray(clip.frames[index], dtype=np.uint8))
    image = Image.new("RGB", (layout.width, layout.top + picture.height + layout.below), PAPER)
    draw = ImageDraw.Draw(image)
    y = 4
    for text, size, colour in [(t, 14, INK) for t in layout.title] + [(t, 12, MARK_COLOURS[0]) for t in layout.note]:
        draw.text((MARGIN, y), text, fill=colour, font=_font(size))
        y += LINE

    bottom = layout.top + picture.height
    image.paste(picture, ((layout.width - picture.width) // 2, layout.top))
    colours = dict(zip(clip.marks, MARK_COLOURS * len(clip.marks), strict=False))
    last, step, before = clip.shown[-1], clip.shown[index], clip.shown[index - 1] if index else -1
    now = [kind for kind, at in clip.marks.items() if any(before < moment <= step for moment in at)]
    if now:
        draw.rectangle((0, layout.top, layout.width - 1, bottom - 1), outline=colours[now[0]], width=3)

    y = bottom + 4
    for line in layout.statistics:
        draw.text((MARGIN, y), line.replace(f"step {last} of", f"step {step} of", 1), fill=INK, font=_font(12))
        y += LINE

    for kinds in layout.legend:  # a swatch and the number of marked frames; the kinds of this very frame are underlaid
        x: float = MARGIN
        for kind in kinds:
            text = f"{kind}: {len(clip.marks[kind])}"
            length = _font(12).getlength(text)
            if kind in now:
                draw.rectangle((x - 2, y, x + SWATCH + length + 2, y + LINE - 1), fill=colours[kind])
            draw.rectangle((x, y + 4, x + SWATCH - 5, y + 11), fill=colours[kind], outline=PAPER)
            draw.text((x + SWATCH, y), text, fill=PAPER if kind in now else INK, font=_font(12))
            x += SWATCH + length + _font(12).getlength(LEGEND_GAP)
        y += LINE

    left, right, top, end = MARGIN, layout.width - 1 - MARGIN, y + 2, y + 2 + TIMELINE_HEIGHT
    at = [left + (right - left) * moment // max(1, last) for moment in range(last + 1)]
    draw.rectangle((left, top + 4, right, end - 4), fill=TRACK)
    draw.rectangle((left, top + 4, at[step], end - 4), fill=MUTED)
    for kind, moments in clip.marks.items():
        for moment in moments:
            draw.line((at[moment], top, at[moment], end), fill=colours[kind], width=2)
    return _even(np.asarray(image))


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _wrapped(items: Sequence[str], width: int, size: int, gap: str) -> tuple[str, ...]:
    """Lines of items, each line at most `width` pixels; only an item that is longer than a line is cut."""
    font = _font(size)
    lines: list[str] = []
    for item in items:
        longer = f"{lines[-1]}{gap}{item}" if lines else item
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        while len(item) > 1 and font.getlength(item) > width:
            item = item[:-2] + "…"
        lines.append(item)
    return tuple(lines)


def _even(frame: np.ndarray) -> np.ndarray:
    """Width and height rounded up to even numbers, which H.264 asks for."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)
