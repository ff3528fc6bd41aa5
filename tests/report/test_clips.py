import io
import struct

import numpy as np
import pytest
from PIL import Image

from pipeline.report.clips import Clip, annotate, side_by_side, to_gif, to_mp4


def clip(count: int = 12, shape: tuple[int, int] = (120, 161), **more: object) -> Clip:
    frames = []
    for step in range(count):
        frame = np.full((*shape, 3), 240, np.uint8)
        frame[40:60, 5 + 4 * step : 25 + 4 * step] = (0, 104, 168)
        frames.append(frame)
    return Clip("recorded", tuple(frames), {"success": "yes", "return": "12.3"}, **more)  # fmt: skip


def test_annotated_frames_keep_the_picture_unchanged_and_have_even_sides() -> None:
    drawn = annotate(clip())
    assert len(drawn) == 12
    assert all(side % 2 == 0 for side in drawn[0].shape[:2])
    left = (drawn[0].shape[1] - 161) // 2
    np.testing.assert_array_equal(drawn[3][24 : 24 + 120, left : left + 161], clip().frames[3])


def test_marked_frames_are_framed_and_the_others_are_not() -> None:
    drawn = annotate(clip(marks={"near miss": (4, 5)}))
    red = (179, 64, 26)
    framed = [bool((frame[24, 0] == red).all()) for frame in drawn]
    assert framed == [step in (4, 5) for step in range(12)]


def test_two_kinds_of_marks_have_different_colours_on_the_timeline() -> None:
    frame = annotate(clip(marks={"near miss": (4,), "collision": (9,)}))[0]
    timeline = frame[-20:]
    for colour in ((179, 64, 26), (110, 76, 158)):
        assert (timeline == colour).all(axis=2).any()


def test_the_shorter_clip_holds_its_last_frame_side_by_side() -> None:
    together = list(side_by_side([clip(4), clip(12, (80, 200))]))
    assert len(together) == 12
    half = annotate(clip(4))[0].shape[1]
    np.testing.assert_array_equal(together[3][:, :half], together[11][:, :half])
    assert (together[3][:, half:] != together[11][:, half:]).any()


def test_clips_of_which_one_leaves_steps_out_show_the_same_steps() -> None:
    """Of 7 steps every third, and the end; of 12 every one."""
    few = Clip("sampled", (*clip(12).frames[0:7:3], clip(12).frames[7]), steps=(0, 3, 6, 7), marks={"met": (4, 7)})
    every = clip(12)
    shown = list(side_by_side([few, every]))
    steps = [(0, 0), (3, 3), (6, 6), (7, 9), (7, 11)]
    assert len(shown) == len(steps)
    drawn = dict(zip(few.steps, annotate(few), strict=True)), annotate(every)
    half = drawn[0][0].shape[1]
    for together, (left, right) in zip(shown, steps, strict=True):
        np.testing.assert_array_equal(together[: len(drawn[0][left]), :half], drawn[0][left])
        np.testing.assert_array_equal(together[: len(drawn[1][right]), half + 8 :], drawn[1][right])
    framed = [bool((frame[24, 0] == (179, 64, 26)).all()) for frame in annotate(few)]
    assert framed == [False, False, True, True]  # step 4 lies before the frame of step 6


def test_the_gif_plays_every_frame_at_its_speed_and_loops() -> None:
    picture = Image.open(io.BytesIO(to_gif(annotate(clip()), frames_per_second=10)))
    assert picture.format == "GIF"
    assert getattr(picture, "n_frames", 1) == 12
    assert picture.info["duration"] == 100
    assert picture.info["loop"] == 0
    picture.seek(11)
    moved = np.asarray(picture.convert("RGB"))
    original = annotate(clip())[11]
    assert np.abs(moved.astype(int) - original).mean() < 3


def test_the_video_is_an_mp4_that_decodes_to_the_same_number_of_frames() -> None:
    import imageio.v2 as imageio

    data = to_mp4(annotate(clip()), frames_per_second=10)
    assert data[4:8] == b"ftyp"
    assert b"avc1" in data
    assert struct.unpack(">I", data[:4])[0] < 100
    with imageio.get_reader(data, format="mp4") as reader:
        assert reader.count_frames() == 12


def test_the_same_frames_give_the_same_gif() -> None:
    assert to_gif(annotate(clip()), 10) == to_gif(annotate(clip()), 10)


@pytest.mark.parametrize("frames", [(), (np.zeros((4, 4), np.uint8),), (np.zeros((4, 4, 3)), np.zeros((5, 4, 3)))])
def test_frames_that_are_no_pictures_of_one_size_are_refused(frames: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(ValueError, match="frames must all be"):
        annotate(Clip("x", frames))
