"""What a validation says: findings, what became of each rule, and the status that follows from them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from pipeline.names import Quality

Value = float | int | str | bool | None

State = Literal["passed", "failed", "not run"]
PASSED: Final = "passed"
FAILED: Final = "failed"
NOT_RUN: Final = "not run"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: which rule says so, where, and the value against its bound."""

    rule: str
    episode: int | None  # None: the dataset as a whole
    step: int | None  # None: the episode as a whole; observations count T + 1 steps
    value: Value
    bound: str
    message: str

    def __str__(self) -> str:
        where = "dataset" if self.episode is None else f"episode {self.episode}"
        where += "" if self.step is None else f", step {self.step}"
        return f"{self.rule}: {where}: {self.message} (value {self.value}, bound {self.bound})"


@dataclass(frozen=True)
class RuleOutcome:
    """What became of one rule."""

    rule: str
    statement: str  # what the rule asks, one line
    state: State
    findings: int  # at most the number that is kept per rule
    reason: str = ""  # why it was not run


def status_of(findings: Sequence[Finding]) -> str:
    """`validated` without findings, `quarantined` with any."""
    return Quality.QUARANTINED if findings else Quality.VALIDATED


@dataclass(frozen=True)
class ValidationReport:
    """The verdict on one dataset; `status` follows from `findings` and nothing else."""

    findings: tuple[Finding, ...]
    rules: tuple[RuleOutcome, ...]
    episodes: int | None  # None: the files could not be read
    steps: int | None
    content_digest: str | None  # computed from the arrays
    notes: tuple[str, ...] = ()
    min_episodes: int = 0  # that were asked for
    replay_episodes: int = 0  # that were to be simulated again

    @property
    def status(self) -> str:
        return status_of(self.findings)

    @property
    def passed(self) -> bool:
        return self.status == Quality.VALIDATED

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
        data = {"status": self.status, **asdict(self)}
        return json.dumps(data, indent=1, allow_nan=False)

    def to_markdown(self) -> str:
        """The report for a reader: verdict, findings, then every rule with what became of it."""
        lines = ["# Dataset validation", "", f"**{self.status}**", ""]
        lines += [f"- episodes: {self.episodes}", f"- steps: {self.steps}", f"- content digest: {self.content_digest}"]
        lines += [f"- {_cell(note)}" for note in self.notes]
        if self.findings:
            lines += ["", "## Findings", "", "| rule | episode | step | value | bound | what |", "|" + "---|" * 6]
            for f in self.findings:
                cells = (f.rule, f.episode, f.step, f.value, f.bound, f.message)
                lines.append("| " + " | ".join("" if cell is None else _cell(cell) for cell in cells) + " |")
        lines += ["", "## Rules", "", "| rule | result | it asks |", "|---|---|---|"]
        for o in self.rules:
            result = o.state + (f" ({o.findings})" if o.findings else "") + (f": {o.reason}" if o.reason else "")
            lines.append(f"| {o.rule} | {_cell(result)} | {_cell(o.statement)} |")
        return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """Text from outside must not break the table or become markup."""
    text = " ".join(str(value).split())
    for character in "\\|<>`[]*_":
        text = text.replace(
            character, "\\" + character if character not in "<>" else {"<": "&lt;", ">": "&gt;"}[character]
        )
    return text
