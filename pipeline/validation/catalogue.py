"""The catalogue of rules in the order they are asked, and `validate`, which asks them."""

from itertools import islice
from pathlib import Path
from typing import Any, Final

from pipeline.data import DatasetMetadata, Trajectories, read_archive, read_metadata
from pipeline.errors import BadInput, disk_refusal
from pipeline.names import METADATA_FILE, TRAJECTORIES_FILE
from pipeline.validation.alignment import ALIGNMENT
from pipeline.validation.provenance import PROVENANCE
from pipeline.validation.report import FAILED, NOT_RUN, PASSED, Finding, RuleOutcome, State, ValidationReport
from pipeline.validation.rules import Context, Dataset, Rule
from pipeline.validation.structure import READABLE, READABLE_STATEMENT, STRUCTURE
from pipeline.validation.values import VALUES

CATALOGUE: Final[tuple[Rule, ...]] = (*STRUCTURE, *VALUES, *PROVENANCE, *ALIGNMENT)
MAX_FINDINGS: Final = 20  # kept of one rule: enough to see the pattern


def validate(source: str | Path | tuple[Trajectories, DatasetMetadata], context: Context) -> ValidationReport:
    """Hold a dataset, a folder or one in memory, to the whole catalogue.

    A rule whose prerequisites failed is not run, because its answer would mean nothing, and neither is one whose facts
    `context` does not give; the report says so. Never raises for what is wrong with the data.
    """
    findings: list[Finding] = []
    dataset = _read(source, findings)
    asked: dict[str, Any] = {
        "min_episodes": context.min_episodes,
        "replay_episodes": 0 if context.replay is None else context.replay_episodes,
    }
    outcomes = [RuleOutcome(READABLE, READABLE_STATEMENT, FAILED if findings else PASSED, len(findings))]
    if dataset is None:
        reason = f"{READABLE} failed"
        outcomes += [RuleOutcome(rule.name, rule.statement, NOT_RUN, 0, reason) for rule in CATALOGUE]
        return ValidationReport(tuple(findings), tuple(outcomes), None, None, None, **asked)
    sound: set[str] = set()
    for rule in CATALOGUE:
        reason = _why_not(rule, sound, dataset, context)
        found = [] if reason else _ask(rule, dataset, context)
        state: State = NOT_RUN if reason else FAILED if found else PASSED
        outcomes.append(RuleOutcome(rule.name, rule.statement, state, len(found), reason))
        findings += found
        if state == PASSED:
            sound.add(rule.name)
    lengths = dataset.arrays.get("lengths")
    return ValidationReport(
        findings=tuple(findings),
        rules=tuple(outcomes),
        episodes=None if lengths is None else len(lengths) if lengths.ndim else None,
        steps=len(dataset.arrays["rewards"]) if "lengths_aligned" in sound else None,
        content_digest=dataset.digest,
        notes=tuple(dataset.notes),
        **asked,
    )


def _read(source: str | Path | tuple[Trajectories, DatasetMetadata], findings: list[Finding]) -> Dataset | None:
    if isinstance(source, tuple):
        trajectories, metadata = source
        return Dataset(trajectories.to_arrays(), metadata.to_data())
    parts: dict[str, Any] = {}
    for name, reader in ((TRAJECTORIES_FILE, read_archive), (METADATA_FILE, read_metadata)):
        try:
            parts[name] = reader(Path(source) / name)
        except BadInput as error:
            if disk_refusal(error) is not None:  # that says nothing of the data
                raise
            findings.append(Finding(READABLE, None, None, name, READABLE_STATEMENT, str(error)))
    return None if findings else Dataset(parts[TRAJECTORIES_FILE], parts[METADATA_FILE])


def _why_not(rule: Rule, sound: set[str], dataset: Dataset, context: Context) -> str:
    for needed in rule.needs:
        if needed not in sound:
            return f"{needed} does not hold"
    return rule.missing(dataset, context) or ""


def _ask(rule: Rule, dataset: Dataset, context: Context) -> list[Finding]:
    """The findings of one rule. One that stumbles over the data has failed: what cannot be checked is not sound."""
    found: list[Finding] = []
    try:
        found.extend(islice(rule.check(dataset, context), MAX_FINDINGS))
    except (ArithmeticError, LookupError, TypeError, ValueError, BadInput) as error:
        message = f"the rule could not be answered: {type(error).__name__}: {error}"
        found.append(Finding(rule.name, None, None, None, rule.statement, message[:300]))
    return found
