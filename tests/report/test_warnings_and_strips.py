"""What a report says when something behind it turned out to be wrong, and strips of playbacks that hide nothing."""

import io
import json
from dataclasses import replace

import numpy as np
from PIL import Image

from pipeline.report import clips
from pipeline.report.clips import Clip, annotate, encode, side_by_side
from pipeline.report.comparison_report import build_report
from pipeline.report.context import ReportContext
from pipeline.report.stage_pages import inspection_files
from pipeline.statistics.comparison import Comparison
from pipeline.validation.inspection import Distribution, FeatureStatistics, Histogram, Inspection, ScenarioOutcome

REASON = "dataset walk-0a1b <was> quarantined by run 0a1b: replay"
STATISTICS = {
    "return": "-1.23", "length": "86", "success": "0", "collision": "1", "near misses": "14",
    "force exceed events": "11", "comfort exposure": "0.0426", "jerk mean": "0.235", "path efficiency": "1",
    "time norm": "1", "snqi": "-1.9", "replay": "bit-identical",
}  # fmt: skip


def test_a_report_on_tainted_things_says_so_before_anything_else(
    comparison: Comparison, context: ReportContext
) -> None:
    files = {name: data.decode() for name, data in build_report(comparison, replace(context, taints=(REASON,))).items()}
    body = files["report.html"].partition("<header")[2]
    warning = "Do not rely on this report: dataset walk-0a1b &lt;was&gt; quarantined by run 0a1b: replay."
    assert body.index('role="alert"') < body.index(warning) < body.index("<strong>FASTER</strong>")
    title, _, first, *_ = files["report.md"].splitlines()
    assert title.startswith("# ") and first.startswith("> **Do not rely on this report: dataset walk-0a1b")
    assert json.loads(files["report.json"])["context"]["taints"] == [REASON]


def test_a_report_with_nothing_against_it_warns_of_nothing(files: dict[str, bytes]) -> None:
    assert b'role="alert"' not in files["report.html"]
    assert b"Do not rely" not in files["report.md"]


def frames(width: int, height: int = 60, count: int = 3) -> tuple[np.ndarray, ...]:
    return tuple(np.full((height, width, 3), 200, np.uint8) for _ in range(count))


def test_no_statistic_of_an_episode_is_cut_at_any_usual_width() -> None:
    for width in (200, 320, 480, 640):
        layout = clips._layout(Clip("episode 3", frames(width), STATISTICS))
        text = "   ".join(layout.statistics)
        assert "…" not in text
        for label, value in STATISTICS.items():
            assert f"{label} {value}" in text
        font = clips._font(12)
        assert all(font.getlength(line) <= width - 2 * clips.MARGIN for line in layout.statistics)


def test_a_long_title_and_every_anomaly_are_wrapped_not_cut() -> None:
    note = "unusual: return -1.23 is 4.5 robust standard deviations below the median 2.71"
    clip = Clip("walk-0a1b2c3d, episode 3: frontal_approach_medium, seed 1793883061", frames(240), STATISTICS, {}, note)
    layout = clips._layout(clip)
    assert " ".join(layout.title) == clip.title
    assert " ".join(layout.note) == note
    height = annotate(clip)[0].shape[0]
    assert height == layout.top + 60 + layout.below + height % 2 or height == layout.top + 60 + layout.below + 1


def test_every_kind_of_mark_is_named_with_its_number_and_stands_out_while_it_happens() -> None:
    marks = {"near miss": (1, 2), "social force": (2,), "collision": ()}
    clip = Clip("x", frames(320), {}, marks)
    assert clips._layout(clip).legend == (("near miss", "social force", "collision"),)
    drawn = annotate(clip)
    legend = [frame[-36:-18] for frame in drawn]
    colours = (clips.MARK_COLOURS[0], clips.MARK_COLOURS[1])
    filled = [[int((part == colour).all(axis=2).sum()) for colour in colours] for part in legend]
    assert filled[1][0] > 3 * filled[0][0] and filled[1][1] == filled[0][1]
    assert filled[2][0] > 3 * filled[0][0] and filled[2][1] > 3 * filled[0][1]


def test_clips_of_different_strips_fit_side_by_side() -> None:
    together = list(side_by_side([Clip("a", frames(240), STATISTICS), Clip("b", frames(240))]))
    assert len({frame.shape for frame in together}) == 1


def test_a_film_is_a_gif_where_that_is_small_and_h264_otherwise(monkeypatch) -> None:
    small = annotate(Clip("x", frames(200)))
    assert encode(small, 10)[0] == "gif"
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (100, 100, 3), dtype=np.uint8) for _ in range(6)]
    monkeypatch.setattr(clips, "MOST_GIF_BYTES", 50_000)
    assert len(clips.to_gif(noise, 10)) > clips.MOST_GIF_BYTES > len(clips.to_gif(small, 10))
    ending, content = encode(noise, 10)
    assert (ending, content[4:8]) == ("mp4", b"ftyp")
    assert encode(small, 10, "mp4")[0] == "mp4"
    assert Image.open(io.BytesIO(encode(noise[:3], 10, "gif")[1])).format == "GIF"


def test_an_inspection_names_features_and_draws_outcomes_where_the_task_tells_them() -> None:
    counts = Histogram("action[0]", (0.0, 1.0), (5, 5))
    inspection = Inspection(
        dataset_id="walk-0a1b",
        origin="expert walk-expert/1",
        episodes=10,
        steps=20,
        features=(FeatureStatistics(0, 0.1, 0.5, -1.0, 1.0, -1.0, 1.0, False),),
        actions=(counts,),
        distributions=(Distribution("return", 3.1, 1.2, 0.5, 9.5, {"50": 3.0}, counts),),
        scenarios=(ScenarioOutcome("quiet", 10, {"success": 0.75, "collision": 0.25}),),
        outliers=(),
    )
    files = inspection_files(inspection, ("the dataset is quarantined",), ("goal_distance",))
    page = files["inspection.md"].decode()
    assert page.startswith("> **the dataset is quarantined**")
    assert "| goal_distance |" in page and "observation[0]" not in page
    assert b"75.0%" in files["figures/scenarios.svg"]
    assert "observation[0]" in inspection_files(inspection, (), ("too", "many"))["inspection.md"].decode()
