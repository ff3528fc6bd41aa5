"""Says that data is wrong: the catalogue of rules, re-simulation, and the inspection of datasets."""

from pipeline.validation.catalogue import CATALOGUE, validate
from pipeline.validation.replay import EpisodeReplay, TaskReplay, replay_episodes
from pipeline.validation.report import Finding, RuleOutcome, ValidationReport, status_of
from pipeline.validation.rules import Approval, Context, Refusal, Replay, ReplayedEpisode

__all__ = [
    "CATALOGUE",
    "Approval",
    "Context",
    "EpisodeReplay",
    "Finding",
    "Refusal",
    "Replay",
    "ReplayedEpisode",
    "RuleOutcome",
    "TaskReplay",
    "ValidationReport",
    "replay_episodes",
    "status_of",
    "validate",
]
