"""What a validation says: findings, what became of each rule, and the status that follows from them."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from pipeline.names import Quality

Index = int | np.integer[Any]
PASSED: Final = "passed"
FAILED: Final = "failed"
NOT_RUN: Final = "not run"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: the value against its bound, and where."""

    rule: str = field(default="", kw_only=True)  # whose finding it is, once the rule was asked
    value: Any  # number, text, flag or None
    bound: str
    message: str
    episode: Index | None = None  # None: the dataset as a whole
    step: Index | None = None  # None: the episode as a whole; observations count T + 1 steps

    def __str__(self) -> str:
        where = "dataset" if self.episode is None else f"episode {self.episode}"
        where += "" if self.step is None else f", step {self.step}"
        return f"{self.rule}: {where}: {self.message} (value {self.value}, bound {self.bound})"


@dataclass(frozen=True)
class RuleOutcome:
    """What became of one rule."""

    rule: str
    statement: str  # what the rule asks, one line
    state: str  # PASSED, FAILED or NOT_RUN
    findings: int = 0  # at most the number that is kept per rule
    reason: str = ""  # why it was not run


@dataclass(frozen=True)
class ValidationReport:
    """The verdict on one dataset; `status` follows from `findings` and nothing else."""

    findings: tuple[Finding, ...]
    rules: tuple[RuleOutcome, ...]
    episodes: int | None  # None: the files could not be read
    steps: int | None
    content_digest: str | None  # computed from the arrays
    notes: tuple[str, ...]
    min_episodes: int  # that were asked for
    replay_episodes: int  # that were to be simulated again

    @property
    def status(self) -> str:
        """`validated` without findings, `quarantined` with any."""
        return Quality.QUARANTINED if self.findings else Quality.VALIDATED

    @property
    def passed(self) -> bool:
        return not self.findings

    @property
    def failed_rules(self) -> tuple[str, ...]:
        """Names of the rules with findings, in the order of the catalogue."""
        return tuple(outcome.rule for outcome in self.rules if outcome.state == FAILED)

    def summary(self) -> str:
        """One line for a terminal or a run description."""
        if self.passed:
            count = sum(outcome.state == PASSED for outcome in self.rules)
            return f"validated: {self.episodes} episodes, {self.steps} steps, {count} rules hold"
        return f"quarantined by {', '.join(self.failed_rules)}; first: {self.findings[0]}"

    def to_json(self) -> str:
        """The whole report as strict JSON text."""
        return json.dumps({"status": self.status, **asdict(self)}, indent=1, allow_nan=False)
