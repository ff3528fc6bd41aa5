"""What a training is asked to do and what it gives back: the types that cross process boundaries."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from pipeline.config.task import TaskConfig
from pipeline.config.training import Convergence, PPOTraining, SACTraining, WarmStart
from pipeline.files import copy_folder
from pipeline.learning.adaptive import Decision
from pipeline.learning.device import chosen_device
from pipeline.names import Metric
from pipeline.play.evaluation import EpisodeRecords
from pipeline.policies import Scaling
from pipeline.policies.transfer import Transfer


@dataclass(frozen=True)
class TrainingJob:
    """One training of one seed: PPO from scratch or from a clone, which differ in `initial_policy` and `warm_start`
    alone, or SAC from scratch."""

    task: TaskConfig
    training: PPOTraining
    seed: int
    output: str  # folder; output/best and output/last become policy folders
    convergence: Convergence | None = None  # None: no convergence test, the whole budget is used
    best_metric: str = Metric.EPISODE_RETURN  # figure that selects the best checkpoint
    initial_policy: str | None = None  # folder of a policy artifact; None: from scratch
    initial_digest: str | None = None  # its digest, where that is known; None: it is read
    left_policy: str | None = None  # why only the scaling of the initial policy is taken, with fresh weights
    scaling: Scaling | None = None  # of fresh weights; None: by the spaces' bounds; an initial policy has its own
    return_scale: float | None = None  # fixed divisor of normalised rewards, and of the initial policy's values
    warm_start: WarmStart | None = None  # only with initial_policy
    residual: bool = False  # the initial policy does not learn: a correction of it does, and the critic
    sac: SACTraining | None = None  # SAC instead of PPO
    demonstrations: str | None = None  # folder of a dataset whose transitions are in SAC's batches
    demonstrations_digest: str | None = None  # of its content
    demonstrations_share: float = 0.0  # of a batch
    learning_rate_zero: bool = False  # control: no weight may change, checked at the end
    total_timesteps: int | None = None  # budget of a control; None: that of `training`
    final_episodes: int = 200  # fresh episodes that the best checkpoint is measured on at the end
    checkpoints: str | None = None  # folder that a killed training goes on from; None: none are kept
    checkpoint_key: str = ""  # digest of what is trained: a checkpoint of another training is not taken
    exact_budget: bool = False  # cut the last rollout so that exactly `budget` steps are trained, whatever n_steps is

    def moved(self, place: Path) -> "TrainingJob":
        """The same, all in a folder that other machines see: what it begins with is copied there."""
        inputs = {}
        for name in ("initial_policy", "demonstrations"):
            if (given := getattr(self, name)) is not None:
                inputs[name] = str(copy_folder(given, place / "inputs" / name))
        folders: dict[str, Any] = {"output": str(place / "output"), "checkpoints": str(place / "checkpoints"), **inputs}
        return replace(self, **folders)

    def perform(self, emit: "Emit") -> "TrainingResult":
        """Train (`train.train`)."""
        from pipeline.learning.train import train  # late: it imports this module

        return train(self, emit)

    @property
    def name(self) -> str:
        """For people."""
        return f"training of seed {self.seed}"

    @property
    def device(self) -> str:
        """`cpu`, `cuda` or `cuda:1`; a job of a task that says `auto` asks this machine, so each may say another."""
        return chosen_device(self.task, self.training.environment, self.training.use_camera)

    @property
    def budget(self) -> int:
        """Environment steps asked for; SB3 rounds up to whole rollouts unless `exact_budget`."""
        return self.training.total_timesteps if self.total_timesteps is None else self.total_timesteps

    def seed_of(self, part: int) -> int:
        """Of all generators in a part of it, from one checkpoint to the next."""
        return int(np.random.SeedSequence([self.seed, part]).generate_state(1)[0]) >> 1 if part else self.seed

    @property
    def bound_to_budget(self) -> str | None:
        """Why no part of it is a part of a longer training, which could go on from there; None: it is."""
        if self.sac is not None:
            return "its replay buffer was not kept"
        rate = self.training.learning_rate
        if not self.learning_rate_zero and rate.over_steps is None and rate.final not in (None, rate.initial):
            return "training.learning_rate falls over the whole budget"
        return None


@dataclass(frozen=True)
class TrainingEvent:
    """What a training says while it runs: metrics, a line that people should see, a policy to draw."""

    kind: Literal["metrics", "note", "policy"]
    timestep: int  # environment steps so far
    metrics: Mapping[str, float] = field(default_factory=dict)  # SB3's own keys, or eval/<figure>
    text: str = ""  # the line, or the folder of the policy


Emit = Callable[[TrainingEvent], None]
Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True)
class EvaluationPoint:
    """The deterministic policy at a moment of training, on the fixed evaluation episodes."""

    timestep: int  # environment steps of training before it; the first point is at 0
    records: EpisodeRecords


@dataclass(frozen=True)
class WallSeconds:
    """Where the time of a training went, in seconds."""

    total: float
    evaluation: float  # the scheduled ones
    final_evaluation: float


@dataclass(frozen=True)
class TrainingResult:
    """What a training came to. `output/best` and `output/last` hold the policies."""

    seed: int
    evaluations: tuple[EvaluationPoint, ...]
    converged_at: int | None  # measured timestep, None when the thresholds did not hold for `patience` evaluations
    best_timestep: int
    best_digest: str  # policy_digest of output/best
    last_digest: str
    best_weights: str  # weights_digest: equal weights give equal digests, whatever the provenance says
    last_weights: str  # as they were trained: the critic in the unit of the rewards that it saw
    environment_steps: int  # of training alone
    gradient_steps: int  # of PPO's policy and critic, or of SAC's critics, each with one of its actor
    evaluation_steps: int  # of scheduled and final evaluations
    wall_seconds: WallSeconds
    transferred: Transfer | None  # from the initial policy, taken before the first step
    final: EpisodeRecords  # best checkpoint on fresh episodes
    decisions: tuple[Decision, ...] = ()  # of an adaptive warm start
    exact_resume: bool | None = None  # would it be the same after a kill; None: it has no checkpoint to go on from
    machines: tuple[Mapping[str, str], ...] = ()  # that trained it, where they differ in what decides bits


class Job(Protocol[Result_co]):
    """What runs somewhere, with a thread of its own: a `TrainingJob`, the job of a clone, or a chunk of episodes."""

    @property
    def task(self) -> TaskConfig:
        """It says where."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def device(self) -> str:
        """What its networks learn on, on this machine: `cpu`, `cuda` or `cuda:1`."""

    @property
    def output(self) -> str:
        """Folder in which it leaves its policies."""

    @property
    def checkpoints(self) -> str | None:
        """Folder that it goes on from when it is begun again; None: it begins anew."""

    @property
    def checkpoint_key(self) -> str: ...

    def moved(self, place: Path) -> "Job[Result_co]":
        """The same, all in a folder that other machines see."""

    def perform(self, emit: Emit) -> Result_co:
        """Do it; what it came to. Raises BadInput for what the user can mend."""
