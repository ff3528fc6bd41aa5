import html
import json
import re
import runpy
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import BUDGET, SETTINGS, made_up_comparison, runs, training
from outline import first_screen, outline

from pipeline.learning.adaptive import Decision
from pipeline.report.comparison_report import build_report, report_data
from pipeline.report.context import ReferencePolicy, ReportContext
from pipeline.report.figures import learning_curve
from pipeline.statistics.comparison import Comparison, UpfrontCost, compare
from pipeline.statistics.efficiency import BOUNDS
from pipeline.statistics.estimate import Estimate, FromEpisodes

BARE = ReportContext(task="social_nav", group="g", created_at="2026-11-21T09:30:00Z")


def test_the_page_is_well_formed_and_no_id_is_given_twice(files: dict[str, bytes]) -> None:
    parsed = outline(files["report.html"].decode())
    assert len(set(parsed.ids)) == len(parsed.ids)
    anchors = [value[1:] for tag, name, value in parsed.attributes if tag == "a" and name == "href" and value[0] == "#"]
    assert len(anchors) == 12
    assert set(anchors) <= set(parsed.ids)
    used = [value[1:] for _, name, value in parsed.attributes if name == "xlink:href" and value.startswith("#")]
    assert set(used) <= set(parsed.ids)


def test_the_page_fetches_nothing_and_runs_nothing(files: dict[str, bytes]) -> None:
    page = files["report.html"].decode()
    parsed = outline(page)
    assert not {"script", "link", "iframe", "object", "embed"} & set(parsed.tags)
    assert not [a for a in parsed.attributes if a[1].startswith("on")]
    assert all(v.startswith(("data:", "#")) for _, n, v in parsed.attributes if n in ("src", "xlink:href"))
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page


def test_the_first_screen_holds_the_verdict_with_its_confidence(
    files: dict[str, bytes], comparison: Comparison
) -> None:
    first = first_screen(files["report.html"])
    assert "<strong>FASTER</strong>" in first
    pairs = [(p.pretrained.steps, p.baseline.steps) for p in comparison.pairs]
    ratio = sum(quick for quick, _ in pairs) / sum(slow for _, slow in pairs)
    assert comparison.ratio.value == pytest.approx(ratio)
    assert f"{100 * ratio:.1f}\u00a0% of the timesteps" in first
    assert f"{100 * comparison.ratio.low:.1f}\u00a0% to {100 * comparison.ratio.high:.1f}\u00a0%" in first
    assert "5 matched seeds" in first
    for name in ("train_small", "holdout"):  # what it is worth there, and what fine-tuning added
        for reference in ("from scratch", "clone at start"):
            assert f"success rate on {name}: pre-trained minus {reference}" in first


def test_a_comparison_in_which_no_run_met_the_target_shows_no_ratio(context: ReportContext) -> None:
    never = {arm: [replace(r, figures={**r.figures, "success_rate": 0 * r.figures["success_rate"]}) for r in of_arm]
             for arm, of_arm in runs("open").items()}  # fmt: skip
    files = build_report(compare(never, SETTINGS, UpfrontCost(1_000, 100)), context)
    for text in (files["report.html"].decode(), files["report.md"].decode()):
        assert "No run of either arm met the target: nothing is known of the timesteps" in text
        assert "not known whether anything is paid back" in text
        assert not re.search(r"100[\u00a0 ]% of the timesteps|contains 1|never paid back|observed ratio", text)
    assert "</svg>" not in first_screen(files["report.html"])


def test_a_scale_is_given_where_demonstrator_and_untrained_policy_differ() -> None:
    safe = {arm: [replace(r, figures={**r.figures, "collision_rate": 0 * r.figures["collision_rate"]}) for r in of_arm]
            for arm, of_arm in runs("faster").items()}  # fmt: skip
    settings = replace(SETTINGS, smallest_difference={"return_mean": 5.0}, resamples=99)
    figures = {"success_rate": Estimate(0.95, 0.93, 0.97), "collision_rate": Estimate(0.0, 0.0, 0.01)}
    context = replace(BARE, references=(ReferencePolicy("expert", "train_small", figures, 600),))
    page = build_report(compare(safe, settings), context)["report.md"].decode()
    assert "Success rate: the task names no difference that is too small to matter. For scale: untrained" in page
    assert "Collision rate: the task names" not in page  # neither ever collides: there is no way between them


def test_it_says_whether_intervals_of_times_cover_the_evaluation_episodes(comparison: Comparison) -> None:
    for episodes, said in (
        (1, "of times to target over no episodes"),
        (100, "also over the episodes of the evaluations"),
    ):
        page = build_report(replace(comparison, from_episodes=FromEpisodes(0.01, episodes)), BARE)["report.md"].decode()
        assert said in page.replace("those ", "")


def test_what_it_cost_stands_below_the_headline_and_is_a_sum_that_a_reader_can_redo(
    files: dict[str, bytes], comparison: Comparison
) -> None:
    bill = comparison.bill
    assert bill is not None
    headline = first_screen(files["report.html"]).split("</p>")[1]
    # runs that never met the target, and such that met it before their first update, make bounds of both figures
    assert any(run.censored for run in comparison.arms["scratch"].times)
    assert f"paid back after {BOUNDS[comparison.ratio_kind]}{bill.break_even.reuses} trainings" in headline
    assert f"at most {bill.upfront.steps / bill.baseline_steps.value:.2f} runs from scratch" in headline
    lines = files["report.md"].decode()
    table = lines.partition("| everything behind this comparison")[2].partition("\n\n")[0].splitlines()[2:]
    rows = {name.strip(): cells for _, name, *cells, _ in (line.split("|") for line in table)}
    steps = {name: [int(cell.replace(",", "").strip()) for cell in cells] for name, cells in rows.items()}
    before, total = steps.pop("sum before the arms"), steps.pop("sum of all")
    assert before[0] == sum(s for name, (s, _) in steps.items() if "runs to their ends" not in name)
    assert before[1] == sum(e for name, (_, e) in steps.items() if "runs to their ends" not in name)
    assert total == [sum(s for s, _ in steps.values()), sum(e for _, e in steps.values())]
    assert sum(total) == bill.spent
    never = replace(bill, break_even=replace(bill.break_even, reuses=None))
    page = build_report(replace(comparison, bill=never), BARE)["report.html"]
    assert "never paid back" in first_screen(page).split("</p>")[1]


def test_one_seed_and_a_further_arm_make_a_report_that_decides_nothing() -> None:
    of_one = {arm: of_arm[:1] for arm, of_arm in runs("faster").items()}
    found = compare({**of_one, "naive": of_one["pretrained"]}, SETTINGS)
    assert [(one.ratio_p, one.difference_p) for one in found.ranking] == [(1.0, 1.0)] * 2
    page = build_report(found, BARE)["report.md"].decode()
    assert "1 seeds cannot give less than 1 before it, so that with so many arms nothing can survive it" in page


def test_further_arms_are_ranked_below_a_first_screen_that_stays_that_of_two_arms() -> None:
    generator = np.random.default_rng(4)
    rise = {"scratch": (0.0, 300_000, 0.95), "pretrained": (0.8, 20_000, 0.985), "naive": (0.2, 900_000, 0.93)}
    arms = {
        arm: [
            replace(training(generator, seed, *how, BUDGET), wall_seconds=90.0, gradient_steps=480.0)
            for seed in range(1, 8)
        ]
        for arm, how in rise.items()
    }
    arms["naive"] = [replace(run, wall_seconds=150.0, gradient_steps=7_200.0) for run in arms["naive"]]
    pages = {
        name: build_report(compare({arm: arms[arm] for arm in among}, SETTINGS), BARE)
        for name, among in {"two": ["scratch", "pretrained"], "three": list(arms)}.items()
    }
    screens = {name: first_screen(files["report.html"]) for name, files in pages.items()}
    assert screens["three"].replace("naive", "") == screens["two"]
    page = pages["three"]["report.md"].decode()
    table, ranking = page.partition("## The arms")[2].split("### Which arm needs the fewest steps")
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines() if row.startswith("|")]
    assert cells[0][-2:] == ["wall time a run", "gradient steps a run"]
    assert [row[-2:] for row in cells if row[0] in ("pre-trained", "naive")] == [
        ["1 min 30 s", "480"],
        ["2 min 30 s", "7,200"],
    ]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in ranking.splitlines() if row.startswith("|")]
    assert [cells[2][0], cells[2][-1]] == ["pre-trained", "fewer steps, ends higher"]
    assert [cells[3][0], cells[3][-1]] == ["naive", "more steps, ends lower"]


def test_seeds_whose_clone_was_left_are_named_on_the_first_screen(
    comparison: Comparison, context: ReportContext
) -> None:
    left = {seed: [Decision(0, "clone_weights", 0.0, "it learnt nothing")] for seed in (2, 3)}
    kept = {1: [Decision(8192, "clone_penalty", 0.5, "no worse")]}

    def first(decisions) -> str:
        return first_screen(build_report(comparison, replace(context, decisions=decisions))["report.html"])

    said = "The clones of seeds 2, 3 learnt nothing: there the warm start began with fresh weights"
    assert said in first({**kept, **left}) and "learnt nothing" not in first(kept)


def test_clones_that_failed_are_told_on_the_first_screen(comparison: Comparison, context: ReportContext) -> None:
    for imitation in ("failed", "partly", "learnt"):
        made = replace(context, dataset={**(context.dataset or {}), "imitation": imitation})
        first = first_screen(build_report(comparison, made)["report.html"])
        assert ("not shown to have learnt anything from the demonstrations" in first) == (imitation == "failed")


def test_described_figures_that_moved_are_counted_on_the_first_screen_without_a_verdict(comparison: Comparison) -> None:
    """Comfort exposure is the one figure of the made-up runs that is not primary, on the training set alone."""
    (comfort,) = (f for f in comparison.finals["train_small"] if not f.primary)
    for low, counted in ((0.001, "1 of 1 other figures differs "), (-0.001, "0 of 1 other figures differ ")):
        moved = replace(comfort.contrasts["scratch"], difference=Estimate(0.004, low, 0.008))
        figures = [f for f in comparison.finals["train_small"] if f.primary]
        figures.append(replace(comfort, contrasts={**comfort.contrasts, "scratch": moved}))
        finals = {**comparison.finals, "train_small": tuple(figures)}
        first = first_screen(build_report(replace(comparison, finals=finals), BARE)["report.html"])
        assert counted in first
        assert ("comfort exposure ↓ on train_small +0.004" in first) == (low > 0)


def test_the_final_figure_says_how_often_the_best_checkpoint_is_the_clone(comparison: Comparison) -> None:
    for best, said in ((None, "is not known"), (0, "the best of 5 of 5 pre-trained"), (8, "the best of 0 of 5")):
        arm = comparison.arms["pretrained"]
        arms = {**comparison.arms, "pretrained": replace(arm, runs=tuple(replace(r, best_step=best) for r in arm.runs))}
        page = build_report(replace(comparison, arms=arms), BARE)["report.md"].decode()
        assert said in page
    (line,) = (line for line in page.splitlines() if line.startswith("Last policies"))
    (last,) = (f for f in comparison.last if f.figure == "success_rate")
    for arm in ("scratch", "pretrained"):
        assert f"{last.means[arm].value:.3f}" in line


def test_every_seed_is_shown_with_its_censoring(files: dict[str, bytes], comparison: Comparison) -> None:
    censored = [pair for pair in comparison.pairs if pair.baseline.censored]
    assert len(censored) == 1
    for text in (files["report.html"].decode(), files["report.md"].decode()):
        for pair in comparison.pairs:
            assert f"{pair.pretrained.steps:,}" in text
        assert "upper bound" in text
        assert re.search("(>|&gt;)[\u00a0 ]1,000,000", text)


def test_what_a_warm_start_decided_stands_seed_by_seed(files: dict[str, bytes]) -> None:
    lines = files["report.md"].decode().splitlines()
    assert [" ".join(line.split()) for line in lines if re.search(r"\| +2 +\| .* at ", line)] == [
        "| pre-trained | 2 | clone_penalty | 0.5 at 16,384, 0 at 24,576 |",
        "| pre-trained | 2 | initial_action_std/0 | 0.87 at 0 |",
    ]


def test_the_page_says_what_each_further_arm_is_and_what_its_starts_decided(
    comparison: Comparison, context: ReportContext
) -> None:
    arms = {
        "warm_start.clone_penalty": {"pretrained": "adaptive", "naive": "0.0", "few": "adaptive"},
        "episodes": {"pretrained": "–", "naive": "–", "few": "12"},
    }
    left = {"few": {seed: [Decision(0, "clone_weights", 0.0, "it learnt nothing")] for seed in (1, 3)}}
    page = build_report(comparison, replace(context, arms=arms, further_decisions=left))["report.md"].decode()
    lines = [" ".join(line.split()) for line in page.splitlines()]
    assert "| setting | pre-trained | naive | few |" in lines
    assert "| warm_start.clone_penalty | adaptive | 0.0 | adaptive |" in lines
    assert "| episodes | – | – | 12 |" in lines
    assert "| few | 3 | clone_weights | 0 at 0 |" in lines
    assert "- Arm few began with fresh weights on seeds 1, 3: the clones learnt nothing." in lines


def test_no_two_of_eight_further_arms_are_drawn_alike(comparison: Comparison) -> None:
    def dashes(arms) -> set[str]:
        drawn = learning_curve(replace(comparison, arms=arms), "success_rate")
        return set(re.findall(r"stroke-dasharray: ([\d., ]+)", drawn))

    further = {f"arm{i}": comparison.arms["pretrained"] for i in range(8)}
    assert len(dashes({**comparison.arms, **further}) - dashes(comparison.arms)) == 8


def test_markdown_and_page_say_the_same(files: dict[str, bytes]) -> None:
    lines, page = files["report.md"].decode(), files["report.html"].decode()
    titles = re.findall("^## (.+)$", lines, re.MULTILINE)
    assert len(titles) == 12
    assert titles == re.findall("<h2>(.*)</h2>", page)
    assert page.count("<details><summary>") == lines.count("\n### ") == 12
    shown = re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]*>", " ", page)))
    rows = [line for line in lines.splitlines() if line.startswith("| ")]
    cells = {cell.strip() for row in rows for cell in row.split("|") if not re.fullmatch(r"\s*-+:?\s*", cell)}
    assert len(cells) > 100
    assert not [cell for cell in cells if cell not in shown]
    figures = re.findall(r"\]\((figures/[^)]+)\)", lines)
    assert sorted(figures) == sorted(name for name in files if name.startswith("figures/"))
    assert page.count('<figure class="plot"') == len(figures) + 1  # the gauge


def test_figures_are_svg_files_of_their_own_in_real_colours(files: dict[str, bytes]) -> None:
    figures = {name: data for name, data in files.items() if name.startswith("figures/")}
    assert len(figures) >= 8
    for data in figures.values():
        assert ElementTree.fromstring(data).tag.endswith("svg")
        assert b"var(--" not in data
        assert not re.search(rb"#0[0-9a-f](?:01|02|03|04|05|06|07|08|09|0a|0b){2}\b", data)


def test_colours_of_the_page_follow_light_and_dark(files: dict[str, bytes]) -> None:
    page = files["report.html"].decode()
    assert "prefers-color-scheme: dark" in page
    assert "var(--arm-pretrained)" in page
    assert not re.search(r"#0([1-9ab])(?:0\1){2}", page)


@pytest.mark.parametrize("scheme", ["LIGHT", "DARK"])
def test_text_colours_have_enough_contrast_for_small_text(scheme: str) -> None:
    from pipeline.report import palette

    colours = getattr(palette, scheme)

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for name in ("ink", "muted", "good", "bad", "link", "target", "arm-scratch", "arm-pretrained"):
        for ground in ("paper", "card"):
            lighter, darker = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (scheme, name, ground)


def test_what_is_not_known_is_said_and_nothing_is_invented() -> None:
    comparison = replace(made_up_comparison("slower"), bill=None)
    page = build_report(comparison, BARE)["report.html"].decode()
    parsed = outline(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    for missing in (
        "no bill",
        "No playback",
        "lineage of these runs is not known",
        "was not measured",
        "commit is not known",
        "versions are not known",
        "reference policies",
    ):
        assert missing in page
    assert "<strong>SLOWER</strong>" in page


def test_an_open_verdict_says_how_many_seeds_would_decide(context: ReportContext) -> None:
    first = first_screen(build_report(made_up_comparison("open"), context)["report.html"])
    assert "<strong>NO DIFFERENCE FOUND</strong>" in first
    page = build_report(made_up_comparison("open"), context)["report.md"].decode()
    assert "more matched seeds" in page
    assert "more seeds like these would not help" in page


def test_the_json_holds_the_documented_keys_and_the_numbers_of_the_comparison(
    files: dict[str, bytes], comparison: Comparison, context: ReportContext
) -> None:
    data = json.loads(files["report.json"])
    assert data == json.loads(json.dumps(report_data(comparison, context)))
    assert (data["schema"], data["schema_version"]) == ("comparison_report", 2)
    assert data["comparison"]["ratio"]["value"] == comparison.ratio.value
    assert [p["ratio"] for p in data["comparison"]["pairs"]] == [p.ratio for p in comparison.pairs]
    assert data["context"]["animations"][0]["bytes"] > 1_000

    documented = (Path(__file__).parents[2] / "docs/report-schema.md").read_text(encoding="utf-8")
    for part in ("comparison", "context"):
        for key in data[part]:
            assert f"`{key}`" in documented, f"{part}.{key} is not documented"


def test_the_same_inputs_give_the_same_bytes(
    files: dict[str, bytes], comparison: Comparison, context: ReportContext
) -> None:
    assert build_report(comparison, context) == files


def test_the_sensitivity_table_is_what_an_independent_script_makes_of_the_evaluations(context: ReportContext) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/recompute_sensitivity.py"))
    for kind in ("faster", "open", "slower"):
        report = json.loads(build_report(made_up_comparison(kind), context)["report.json"])
        assert len(report["comparison"]["sensitivity"]) > 15
        assert script["differences"](report) == []
    report["comparison"]["sensitivity"][3]["ratio"]["high"] *= 1.001
    assert len(script["differences"](report)) == 1
