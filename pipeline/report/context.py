"""What a comparison report shows beside the comparison itself. The page says of every part that is None: missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.task import TaskConfig
from pipeline.learning.adaptive import Decision
from pipeline.names import Metric
from pipeline.statistics.comparison import RunCurve
from pipeline.statistics.estimate import Estimate
from pipeline.statistics.finals import Regression
from pipeline.statistics.shift import Shift
from pipeline.statistics.snqi import load_weights


@dataclass(frozen=True)
class LineageNode:
    """One run, policy version or dataset of the chain; the nodes are listed so that parents come first."""

    key: str  # unique, what `parents` refer to
    kind: str  # "expert", "gate", "dataset", "pretrain", "finetune", "baseline", "report", ...
    title: str
    detail: str = ""  # one line: digest, figures, settings that matter
    url: str | None = None  # http(s) address of the run
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Animation:
    """A playback as a film."""

    title: str
    caption: str
    data: bytes  # MP4
    poster: bytes  # PNG


@dataclass(frozen=True)
class RunLink:
    """Where one training can be looked up."""

    arm: str
    seed: int
    run_id: str
    url: str | None = None


@dataclass(frozen=True)
class SettingDifference:
    """A setting in which the two arms are not equal."""

    key: str
    scratch: str
    pretrained: str


@dataclass(frozen=True)
class ReferencePolicy:
    """A policy the arms are read against: the expert, the clone, a classical planner, standing still."""

    name: str
    scenario_set: str
    figures: Mapping[str, Estimate]  # figure -> value with its interval over episodes
    episodes: int


@dataclass(frozen=True)
class OtherComparison:
    """Of the same task, with another expert or other demonstrations."""

    group: str
    expert: str
    dataset: str
    badge: str  # its verdict
    ratio: Estimate | None  # None: no run met the target
    url: str | None = None


@dataclass(frozen=True)
class Term:
    """A figure in words."""

    figure: str
    meaning: str  # with its unit
    direction: str  # "more is better", "less is better", "neither"
    smallest_difference: float | None


def glossary(task: TaskConfig, figures: Sequence[str]) -> tuple[Term, ...]:
    """What the figures of a task mean: its own words, else those of the figures that every task has."""
    known = {
        Metric.SUCCESS_RATE: "share of episodes that succeed",
        Metric.COLLISION_RATE: "share of episodes that end in a collision",
        Metric.RETURN_MEAN: "sum of the rewards of an episode",
        Metric.LENGTH_MEAN: "steps of an episode",
        **{name: f"{m.over} of the environment's `{m.info}` in an episode" for name, m in task.metrics.items()},
        **task.meanings,
    }
    if task.snqi is not None and "snqi" in known:
        weights = ", ".join(f"{name} {weight:g}" for name, weight in load_weights(Path(task.snqi.weights)).items())
        known["snqi"] += f"; weights: {weights}"
    better = {Metric.LENGTH_MEAN: "neither", **dict.fromkeys(task.minimised, "less is better")}
    return tuple(
        Term(f, known.get(f, f.replace("_", " ")), better.get(f, "more is better"), task.smallest_difference.get(f))
        for f in figures
    )


@dataclass(frozen=True)
class ReportContext:
    """Everything but the numbers of the comparison."""

    task: str
    group: str
    created_at: str  # UTC, ISO 8601
    taints: tuple[str, ...] = ()  # why something that the comparison rests on must not be trusted any more
    differences: tuple[SettingDifference, ...] | None = None
    arms: Mapping[str, Mapping[str, str]] | None = None  # setting -> arm -> its value, of all arms but from scratch
    decisions: Mapping[int, Sequence[Decision]] | None = None  # seed -> what its adaptive warm start decided
    further_decisions: Mapping[str, Mapping[int, Sequence[Decision]]] | None = None  # the same, by further arm
    shared_settings: Mapping[str, str] | None = None  # dotted key -> value, equal in both arms
    references: tuple[ReferencePolicy, ...] | None = None
    animations: tuple[Animation, ...] | None = None
    shift: Shift | None = None
    holdout_shifts: Mapping[str, Shift] | None = None  # hold-out set -> the same for rollouts there
    experts: tuple[RunCurve, ...] | None = None  # the training of the expert, seed by seed
    others: tuple[OtherComparison, ...] | None = None  # that this store has, newest first
    target_origin: str | None = None  # where the target stands, why, and since when, as a sentence
    scenario_sets: Mapping[str, str] | None = None  # of the final evaluations -> its scenarios with their shares
    glossary: tuple[Term, ...] | None = None
    shift_samples: tuple[str, str] = (
        "demonstrations",
        "the demonstrator in the scenarios of fine-tuning",
    )  # what was compared
    regressions: tuple[Regression, ...] | None = None
    lineage: tuple[LineageNode, ...] | None = None
    runs: tuple[RunLink, ...] | None = None
    demonstrated: bool = True  # the pre-trained arm starts from clones, not from a policy without demonstrations
    dataset: Mapping[str, str] | None = None  # facts about the demonstrations, label -> value
    commands: tuple[str, ...] | None = None  # that reproduce the comparison
    versions: Mapping[str, str] | None = None  # package -> version
    commit: str | None = None
    dirty: bool | None = None  # whether the tree differed from the commit
    machine: str | None = None
    resume: str | None = None  # would a training that is killed come to the same; None: none had a checkpoint
