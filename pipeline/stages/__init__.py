"""One module a stage: it reads, lets the rooms below do the work, and logs. Stages never import each other.

They meet through artifacts and tags.

Every module offers

    UPSTREAM: tuple[str, ...]     # the upstream references it takes: expert, dataset, policy, group
    def run(run: StageRun, config, upstream: Mapping[str, str]) -> StageOutcome

and those that `main` runs, so that it can tell whether they were done before,

    def inputs(run: StageRun, config, upstream) -> dict[str, str]   # role -> digest of what it reads; `run` is any run
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageOutcome:
    """How a stage ended: its verdict, what a person should read, and what the next stage needs."""

    summary: tuple[str, ...]  # lines: what came out, where to look next
    verdict: bool | None = None  # None: this stage judges nothing; False: exit code 1
    failed: bool = False  # a verdict that ends the run itself FAILED (the gate refused)
    outputs: Mapping[str, str] = field(default_factory=dict)  # references for the next stages
