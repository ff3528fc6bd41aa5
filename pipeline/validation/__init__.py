"""Says that data is wrong: the catalogue of rules, re-simulation, and the inspection of datasets."""

from pipeline.validation.facts import Approval, Context, Refusal, Replay
from pipeline.validation.findings import Finding, RuleOutcome, ValidationReport
from pipeline.validation.replay import EpisodeReplay, TaskReplay, replay_episodes
from pipeline.validation.rules import CATALOGUE, validate

__all__ = [
    "CATALOGUE",
    "Approval",
    "Context",
    "EpisodeReplay",
    "Finding",
    "Refusal",
    "Replay",
    "RuleOutcome",
    "TaskReplay",
    "ValidationReport",
    "replay_episodes",
    "validate",
]
