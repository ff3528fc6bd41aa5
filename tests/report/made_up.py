"""Made-up but realistic inputs of a report. They live in tests only."""

import hashlib

import numpy as np

from pipeline.config.base import Bound
from pipeline.learning.adaptive import Decision
from pipeline.report.context import (
    Animation,
    LineageNode,
    OtherComparison,
    ReferencePolicy,
    ReportContext,
    RunLink,
    SettingDifference,
    Term,
)
from pipeline.statistics.comparison import Comparison, RunCurve, UpfrontCost, compare
from pipeline.statistics.estimate import Estimate
from pipeline.statistics.finals import measure_regression
from pipeline.statistics.matched import ComparisonSettings, RunData
from pipeline.statistics.shift import measure_shift
from pipeline.validation.inspection import (
    Distribution,
    FeatureStatistics,
    Histogram,
    Inspection,
    Outlier,
    ScenarioOutcome,
)

BUDGET, INTERVAL = 1_000_000, 16_384
SETTINGS = ComparisonSettings(
    target={"success_rate": Bound(min=0.9), "collision_rate": Bound(max=0.05)},
    patience=3,
    evaluation_interval=INTERVAL,
    ratio_target=0.7,
    resamples=10_000,
    seed=0,
    final_figure="success_rate",
    training_set="train_small",
    minimised=("collision_rate", "comfort_exposure"),
    primary=("success_rate", "collision_rate", "return_mean"),
    smallest_difference={"success_rate": 0.02, "collision_rate": 0.02},
    evaluation_episodes=100,
)


def training(
    generator: np.random.Generator, seed: int, start: float, halfway: float, top: float, budget: int
) -> RunData:
    """A run whose success rises from `start` to `top`, half of it by step `halfway`."""
    steps = np.append(np.arange(0, budget, INTERVAL), budget)
    rise = 1 / (1 + np.exp(-(steps - halfway) / (0.28 * halfway + 1)))
    rise = (rise - rise[0]) / (1 - rise[0] + 1e-9)
    success = np.clip(start + (top - start) * rise + generator.normal(0, 0.012, len(steps)), 0, 1).round(2)
    collision = np.clip((1 - success) * 0.55 + generator.normal(0, 0.006, len(steps)), 0, 1 - success).round(2)
    final = {"success_rate": float(success[-5:].mean()), "collision_rate": float(collision[-5:].mean())}
    final |= {"return_mean": 12 * final["success_rate"] - 4, "comfort_exposure": 0.1 * final["collision_rate"] + 0.01}
    holdout = {"success_rate": max(0.0, final["success_rate"] - 0.07), "collision_rate": final["collision_rate"] + 0.05}
    figures = {"success_rate": success, "collision_rate": collision, "return_mean": 12 * success - 4}
    sets = {"train_small": final, "holdout": holdout}
    played = {name: {f: np.array([value]) for f, value in of_set.items()} for name, of_set in sets.items()}
    return RunData(seed, steps, figures, played, budget, 5_000, 60.0 + seed)


def runs(kind: str) -> dict[str, list[RunData]]:
    """`faster`: five seeds and a clear effect; `open`: six seeds and a small one; `slower`: one that harms."""
    generator = np.random.default_rng({"faster": 1, "open": 2, "slower": 3}[kind])
    count = {"faster": 5, "open": 6, "slower": 5}[kind]
    scratch, pretrained = [], []
    for seed in range(1, count + 1):
        slow, quick = generator.uniform(220_000, 420_000), generator.uniform(15_000, 40_000)
        begin, top = 0.0, 0.975
        if kind == "open":
            quick, top = generator.uniform(150_000, 480_000), 0.965
        if kind == "slower":
            slow, quick = quick * 4, slow * 1.3
        never = (kind == "faster" and seed == 4) or (kind == "slower" and seed == 2)
        held_back = 0.86 if never else top
        clone = 0.82 if kind == "faster" else 0.3
        scratch.append(training(generator, seed, begin, slow, held_back if kind == "faster" else top, BUDGET))
        pretrained.append(training(generator, seed, clone, quick, held_back if kind == "slower" else 0.985, BUDGET))
    controls = {
        "scratch_lr0": [training(generator, s, 0.0, 1e9, 0.0, 32_768) for s in range(1, count + 1)],
        "pretrained_lr0": [training(generator, s, 0.82, 1e9, 0.82, 32_768) for s in range(1, count + 1)],
    }
    return {"scratch": scratch, "pretrained": pretrained, **controls}


def made_up_comparison(kind: str = "faster") -> Comparison:
    cost = UpfrontCost(
        expert_steps=2_450_000,
        demonstration_steps=21_344,
        evaluation_steps=310_000,
        evaluations={"train_expert": 100_000, "promote": 200_000, "collect": 0, "pretrain": 10_000},
        wall_seconds={"train_expert": 98.3, "promote": 6.1, "collect": 2.2, "pretrain": 14.8, "finetune": 71.5},
    )
    arms = runs(kind)
    clones = [run.final for run in training_clones(len(arms["scratch"]))]
    return compare(arms, SETTINGS, cost, clones, len(clones))


def training_clones(count: int) -> list[RunData]:
    generator = np.random.default_rng(9)
    return [training(generator, s, 0.82, 1e9, 0.82, 32_768) for s in range(1, count + 1)]


def picture(width: int = 480, height: int = 200) -> bytes:
    """A GIF of two moving dots."""
    from pipeline.report.clips import Clip, side_by_side, to_gif

    clips = []
    for name, speed in (("from scratch", 1), ("clone", 2), ("fine-tuned", 3)):
        frames = []
        for step in range(24):
            frame = np.full((height, width // 3, 3), 245, np.uint8)
            x = 10 + speed * step
            frame[90:110, x : x + 20] = (0, 104, 168)
            frame[40:60, 100:120] = (196, 80, 10)
            frames.append(frame)
        clips.append(Clip(name, tuple(frames), {"success": "yes", "steps": "24"}, {"near miss": (5, 6, 7 + speed)}))
    return to_gif(list(side_by_side(clips)), frames_per_second=10)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:36]


def lineage() -> tuple[LineageNode, ...]:
    server = "http://localhost:5000/#/experiments/1/runs/"
    approved, recorded = f"policy {digest('p')}", "200 episodes, 21,344 steps, noise 0.3, validated"
    steps, seeds = "1,000,000 steps", range(1, 4)
    ends = tuple(f"{arm}{seed}" for seed in seeds for arm in "fb")
    return (
        LineageNode("expert", "expert", "train_expert 5f2c", "3 seeds, converged at 802,816 steps", f"{server}5f2c"),
        LineageNode("gate", "gate", "social_nav-expert/3 approved", approved, f"{server}77aa", ("expert",)),
        LineageNode("data", "dataset", "social_nav-200-ab12", recorded, f"{server}c1", ("gate",)),
        LineageNode("clone", "pretrain", "pretrain 9d10", "20 epochs, transfer certified", f"{server}9d10", ("data",)),
        *(LineageNode(f"f{s}", "finetune", f"finetune seed {s}", steps, f"{server}f{s}", ("clone",)) for s in seeds),
        *(LineageNode(f"b{s}", "baseline", f"baseline seed {s}", steps, f"{server}b{s}") for s in seeds),
        LineageNode("report", "report", "compare e41b", "this report", None, ends),
    )  # fmt: skip


def made_up_context() -> ReportContext:
    generator = np.random.default_rng(5)
    demonstrations = [generator.normal(size=(60, 12)) for _ in range(60)]
    rollouts = [generator.normal(size=(50, 12)) + np.eye(12)[3] * 0.8 for _ in range(50)]
    names = [
        "goal_distance",
        "goal_bearing",
        "own_speed",
        "nearest_pedestrian_speed",
        *(f"range[{i}]" for i in range(8)),
    ]
    figures = {"success_rate": Estimate(0.953, 0.93, 0.973), "collision_rate": Estimate(0.031, 0.016, 0.048)}
    after = [run.final["train_small"]["success_rate"] for run in runs("faster")["pretrained"]]
    links = [
        RunLink(
            arm, seed, digest(f"{arm}{seed}")[:32], f"http://localhost:5000/#/experiments/1/runs/{digest(arm)[:32]}"
        )
        for arm in ("scratch", "pretrained")
        for seed in range(1, 6)
    ]
    return ReportContext(
        task="social_nav",
        group="study-2026-11",
        created_at="2026-11-21T09:30:00Z",
        differences=(
            SettingDifference("initial weights", "random, from the seed", f"clone {digest('clone')}"),
            SettingDifference("warm_start.initial_action_std", "–", "0.2"),
        ),
        decisions={
            2: [
                Decision(0, "initial_action_std/0", 0.87, "the clone has 0.87"),
                Decision(16_384, "clone_penalty", 0.5, "not shown to be worse"),
                Decision(24_576, "clone_penalty", 0.0, "better than the clone"),
            ]
        },
        shared_settings={f"training.setting_{i}": str(i * 0.1) for i in range(12)},
        references=(
            ReferencePolicy("expert (social_nav-expert/3)", "train_small", figures, 600),
            ReferencePolicy("clone", "train_small", {**figures, "success_rate": Estimate(0.82, 0.78, 0.86)}, 200),
            ReferencePolicy("social force planner", "train_small", {"success_rate": Estimate(0.71, 0.64, 0.77)}, 200),
        ),
        animations=(
            Animation("Episode 0, frontal_approach_medium, seed 1842", "10 frames a second.", bytes(2_000), picture()),
            Animation("Worst episode", "pre-trained: collision.", b"film", picture()),
        ),
        shift=measure_shift(demonstrations, rollouts, names, permutations=199),
        holdout_shifts={"holdout": measure_shift(demonstrations, rollouts, names, permutations=19)},
        experts=(RunCurve(1, (0, 50_000), {"success_rate": (0.1, 0.95), "collision_rate": (0.5, 0.03)}),),
        others=(OtherComparison("earlier", "social_nav-expert/2", "sn-77aa", "faster", Estimate(0.2, 0.1, 0.4)),),
        target_origin="success rate >= 0.9, the thresholds of the task file.",
        glossary=(Term("success_rate", "share of episodes that succeed", "more is better", 0.02),),
        regressions=(measure_regression("train_small", "success_rate", [0.82] * len(after), after, 1, SETTINGS),),
        lineage=lineage(),
        runs=tuple(links),
        dataset={"episodes": "200", "steps": "21,344", "execution noise": "0.3", "digest": digest("data")},
        commands=(
            "mlflow run . -e finetune -P config=configs/social_nav/study.yaml",
            "mlflow run . -e compare -P group=study-2026-11",
        ),
        versions={"stable-baselines3": "2.9.0", "torch": "2.13.0", "mlflow": "3.17.0", "numpy": "2.4.0"},
        commit=digest("commit"),
        dirty=False,
        machine="2 cores, Linux, Python 3.11.2",
    )  # fmt: skip


def inspection(outliers: tuple[Outlier, ...]) -> Inspection:
    percentiles = {"5": 1.0, "25": 2.0, "50": 3.0, "75": 4.0, "95": 5.0}
    counts = Histogram("return", (0.0, 5.0, 10.0), (7, 3))
    return Inspection(
        dataset_id="pendulum-10-ab12",
        origin="script my.gait:trot (version 3f2a); no expert was approved for this dataset",
        episodes=10,
        steps=2_000,
        features=(
            FeatureStatistics(0, 0.1, 0.5, -1.0, 1.0, -1.0, 1.0, False),
            FeatureStatistics(1, 4.0, 0.0, 4.0, 4.0, None, None, True),
        ),
        actions=(Histogram("action[0]", (0.0, 1.0, 2.0), (5, 5, 1990)),),
        distributions=(Distribution("return", 3.1, 1.2, 0.5, 9.5, percentiles, counts),),
        scenarios=(ScenarioOutcome("only|one", 10, {"return": 3.1}),),
        outliers=outliers,
    )
