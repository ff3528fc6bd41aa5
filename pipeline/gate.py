"""The promotion gate's decision: from measured episodes and rules to approve or refuse, with every reason.

A pure function. It neither plays episodes nor touches the registry.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config.stages import GateRule
from pipeline.config.task import TaskConfig
from pipeline.errors import BadInput
from pipeline.play.evaluation import MEANS, RATES, EpisodeRecords, summarise, summarise_by_scenario
from pipeline.statistics.estimate import bootstrap_mean, wilson_interval


@dataclass(frozen=True)
class PlayedEpisodes:
    """Episodes that the gate played itself."""

    subject: str  # "candidate", or "training seed 2"
    scenario_set: str
    seed: int  # evaluation seed, from which the episodes follow
    records: EpisodeRecords


@dataclass(frozen=True)
class GateRow:
    """One rule held against one policy on one evaluation seed."""

    subject: str
    scenario_set: str
    seed: int
    metric: str
    episodes: int
    value: float  # mean over the episodes
    compared: float  # what is held against the limit: the mean, or the unfavourable end of its interval
    limit: str  # ">= 0.9"
    confidence: float | None
    holds: bool
    missed_by: float  # distance to the limit, 0 when it holds
    worst_scenario: str  # where this figure is worst

    def reason(self) -> str:
        """`candidate, train, seed 101: success_rate 0.87 (needs >= 0.9, missed by 0.03; worst: frontal_low)`."""
        what = f"{self.confidence:.0%} bound of {self.metric}" if self.confidence is not None else self.metric
        return (
            f"{self.subject}, {self.scenario_set}, seed {self.seed}: {what} {self.compared:.4g} "
            f"(needs {self.limit}, missed by {self.missed_by:.4g}; worst scenario: {self.worst_scenario})"
        )


@dataclass(frozen=True)
class GateDecision:
    """The verdict and all rows it rests on."""

    rows: tuple[GateRow, ...]

    @property
    def approved(self) -> bool:
        return bool(self.rows) and all(row.holds for row in self.rows)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What failed, worst first; empty when approved."""
        failed = sorted((row for row in self.rows if not row.holds), key=lambda row: -row.missed_by)
        return tuple(row.reason() for row in failed)

    def to_json(self) -> dict[str, Any]:
        return {"approved": self.approved, "reasons": list(self.reasons), "rows": [asdict(row) for row in self.rows]}


def check_rules(rules: Sequence[GateRule], task: TaskConfig) -> None:
    """Raise BadInput for a rule of a metric that the task does not measure, and for confidence in what is no mean."""
    for rule in rules:
        fault = task.unmeasured("rules", [rule.metric], spread=True)
        if fault is None and rule.confidence is not None and task.unmeasured("rules", [rule.metric]):
            fault = f"rules: confidence is for means and rates; {rule.metric!r} is neither"
        if fault is not None:
            raise BadInput(fault)


def decide(rules: Sequence[GateRule], measured: Sequence[PlayedEpisodes]) -> GateDecision:
    """Hold every rule against every measurement of its scenario set. Exactly at a limit holds.

    Raises ValueError for a rule without a measurement: a rule that was not tested must not pass.
    """
    rows = []
    for rule in rules:
        chosen = [m for m in measured if m.scenario_set == rule.scenario_set]
        if not chosen:
            raise ValueError(f"no measurement on scenario set {rule.scenario_set!r}")
        rows += [_row(rule, m) for m in chosen]
    return GateDecision(tuple(rows))


def _row(rule: GateRule, measured: PlayedEpisodes) -> GateRow:
    summary = summarise(measured.records)
    bound, limit, sign = rule.bound(), rule.min, 1.0  # sign: of what is better
    if limit is None:
        assert rule.max is not None
        limit, sign = rule.max, -1.0
    compared = value = summary[rule.metric].value
    if rule.confidence is not None:
        name = {figure: name for name, figure in MEANS.items()}.get(rule.metric, rule.metric)
        values = measured.records.metrics[name]
        if name in RATES:  # Wilson's: the bootstrap of 100 successes in 100 episodes is a point, which claims certainty
            interval = wilson_interval(int(values.sum()), len(values), rule.confidence)
        else:
            interval = bootstrap_mean(values, seed=0, resamples=10_000, confidence=rule.confidence)
        compared = interval.low if sign > 0 else interval.high
    by_scenario = summarise_by_scenario(measured.records)
    return GateRow(
        subject=measured.subject,
        scenario_set=measured.scenario_set,
        seed=measured.seed,
        metric=rule.metric,
        episodes=len(measured.records.episodes),
        value=value,
        compared=compared,
        limit=str(bound),
        confidence=rule.confidence,
        holds=bound.holds(compared),
        missed_by=0.0 if bound.holds(compared) else abs(compared - limit),
        worst_scenario=min(by_scenario, key=lambda name: sign * by_scenario[name][rule.metric].value),
    )
