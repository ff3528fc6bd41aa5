"""What a task is: an environment, how its final info maps to outcomes, thresholds and scenario sets."""

from collections.abc import Iterable
from dataclasses import field
from typing import Annotated, Final, Literal

from pydantic import Field

from pipeline.config.base import Bound, Count, LibraryArguments, Name, Positive, Steps, configuration
from pipeline.errors import did_you_mean
from pipeline.names import Metric

MINIMISED: Final = (Metric.COLLISION_RATE, "comfort_exposure")  # in every task, whatever its file says
# what a comparison alone reads: no training depends on it
JUDGED: Final = ("primary", "meanings", "smallest_difference", "thresholds_why")
# settings of a task that decide no result: how fast and where, who may say yes, what is claimed
UNDECISIVE: Final = ("environment_workers", "device", "executor", "approvers", *JUDGED)
AUTO: Final = "auto"
CPU: Final = "cpu"
GPU: Final = "cuda"
SNQI: Final = "snqi"
SPREAD: Final = ("median", "p5", "p95", "std", "min", "max")
SMALLEST_DIFFERENCE: Final = {Metric.SUCCESS_RATE: 0.02, Metric.COLLISION_RATE: 0.02}


@configuration
class Wrapper:
    """A wrapper around the environment: a name of `gymnasium.wrappers`, or `my_package.my_module:MyWrapper`."""

    name: str
    kwargs: LibraryArguments = field(default_factory=dict)


@configuration
class Environment:
    """A Gymnasium environment by id (`LunarLander-v3`) or by class (`my_package.my_module:MyEnv`)."""

    id: str
    kwargs: LibraryArguments = field(default_factory=dict)
    """Keyword arguments of every scenario; a scenario's own come on top."""
    wrappers: tuple[Wrapper, ...] = ()
    """Put around the environment in this order, the first one next to it. Every stage sees the same; a policy remembers
    which ones it was trained behind."""
    batched: str | None = None
    """`module:Class` of an `EpisodeVecEnv` that plays the same episodes faster; must give the same bits."""


@configuration
class Outcome:
    """How an episode maps to yes or no: from a key of the final info, or from the return."""

    info: str | None = None
    return_at_least: float | None = None

    def __post_init__(self) -> None:
        if (self.info is None) == (self.return_at_least is None):
            raise ValueError("give exactly one of info and return_at_least")


@configuration
class MeasureInfo:
    """A figure of an episode: a key of the info, and what is taken of its values over the episode's steps."""

    info: str
    over: Literal["last", "sum", "max", "mean"] = "last"
    lower_is_better: bool = False
    """Of two checkpoints, trials or policies the one with less is the better."""
    min: float | None = None
    """The least that is possible: demonstrations that claim less are quarantined."""
    max: float | None = None


@configuration
class Snqi:
    """Weight and baseline files of the social navigation quality index (docs/social_nav.md)."""

    weights: str
    baseline: str


@configuration
class Camera:
    """What policies see when `use_camera` is on: the environment's own picture, made small."""

    size: Annotated[int, Field(ge=36, le=256)] = 64
    """Pixels a side; the convolutional network takes no fewer than 36."""
    grayscale: bool = False
    frames: Annotated[int, Field(ge=1, le=8)] = 3
    """The latest pictures, stacked, so that motion can be seen."""
    observe: Literal["image", "image_and_state"] = "image"
    """With `image_and_state`, policies see `{image, state}`: the picture, and what the environment itself observes."""


@configuration
class ExecutorSettings:
    """Where trainings run: in processes of this machine, on a Ray cluster or on a SLURM cluster."""

    kind: Literal["local", "ray", "slurm"] = "local"
    folder: str | None = None
    """Where trainings of a cluster keep what they are given, say and leave: a path that is the same on every node."""
    at_once: Count = 1000
    """Trainings that are given to a cluster at a time; how many of them it runs is up to the cluster."""
    retries: Steps = 10
    """How often a training whose node was lost is begun again, from its last checkpoint."""
    options: LibraryArguments = field(default_factory=dict)
    """Of every training: those of a Ray task (num_cpus, resources, ...), or what submitit asks SLURM for (partition,
    time in minutes, cpus_per_task, mem, setup, ...)."""

    def __post_init__(self) -> None:
        if self.kind == "local":
            given = [name for name in ("folder", "options") if getattr(self, name)]
            if given:
                raise ValueError(f"{given[0]} is for kind ray or slurm, not for 'local'; remove it")
        elif self.folder is None or not self.folder.startswith("/"):
            raise ValueError(f"kind {self.kind!r} needs folder: an absolute path that is the same on every node")


@configuration
class TaskConfig:
    """A task file, `configs/tasks/<name>.yaml`."""

    name: Name
    environment: Environment
    success: Outcome
    thresholds: dict[str, Bound]
    """Figure -> bound: what "solved" means; read by convergence, gate and comparison."""
    scenarios: Annotated[dict[Name, LibraryArguments], Field(min_length=1)]
    """Scenario name -> its own keyword arguments of the environment."""
    scenario_sets: Annotated[dict[Name, dict[Name, Positive]], Field(min_length=1)]
    """Set name -> scenario -> share of the episodes (relative weights)."""
    thresholds_why: str = ""
    """Where these limits come from, in the words of whoever set them; a report quotes them."""
    holdout_sets: tuple[Name, ...] = ()
    """Sets that training and recording must never touch."""
    collision: Outcome | None = None
    success_excludes_collision: bool = False
    """Demonstrations that claim both of one episode are quarantined."""
    metrics: dict[Name, MeasureInfo] = field(default_factory=dict)
    """Further figures of an episode."""
    events: dict[str, str] = field(default_factory=dict)
    """What playbacks mark: event name -> key of the info that counts it, step by step."""
    snqi: Snqi | None = None
    primary: tuple[str, ...] = ()
    """Figures of the final evaluation that a comparison gives a verdict on; none: success, collision and return, where
    the task measures them."""
    meanings: dict[str, str] = field(default_factory=dict)
    """Figure -> what it is, with its unit, for the glossary of a report."""
    smallest_difference: dict[str, Positive] = field(default_factory=lambda: {**SMALLEST_DIFFERENCE})
    """Figure -> what is too little to matter: a difference that certainly is smaller counts as none."""
    camera: Camera = Camera()
    horizon: Count | None = None
    """Steps after which an episode is truncated; None leaves it to the environment."""
    approvers: str | None = None
    """File of the users who may approve an expert, and their public keys; with it nobody records from an expert that
    none of them signed (docs/team.md). None: the gate alone approves."""
    environment_workers: Steps | Literal["auto"] = 0
    """Processes that step the environments of a training, an evaluation or a recording, to the bits of one; 0: none but
    the one that asks; auto: one a core that it may use where a step takes more than a millisecond, else 0."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")] = AUTO
    """What networks learn on: cpu; cuda, a GPU that a training has to itself; cuda:1, that GPU, shared by as many
    trainings as run at a time; auto: a GPU for policies that see pictures, where there is one, else the CPU."""
    executor: ExecutorSettings = ExecutorSettings()
    """Where trainings run, to the same bits; PIPELINE_EXECUTOR stands above it."""

    def __post_init__(self) -> None:
        for set_name, shares in self.scenario_sets.items():
            if not shares:
                raise ValueError(f"scenario set {set_name!r} is empty")
            for scenario in shares:
                if scenario not in self.scenarios:
                    raise ValueError(f"scenario set {set_name!r} names {scenario!r}, which scenarios does not define")
        for set_name in self.holdout_sets:
            if set_name not in self.scenario_sets:
                raise ValueError(f"holdout_sets names {set_name!r}, which scenario_sets does not define")
        if fault := self.unmeasured("thresholds", self.thresholds):
            raise ValueError(fault)

    def unmeasured(self, setting: str, figures: Iterable[str], spread: bool = False) -> str | None:
        """What is wrong with a setting that names a figure which no evaluation of this task has; None: nothing.

        It has means and rates; with `spread` the median, quantiles and extremes of returns and lengths as well.
        """
        collision = () if self.collision is None else (Metric.COLLISION_RATE,)
        index = () if self.snqi is None else (SNQI,)
        kinds = ("mean", *(SPREAD if spread else ()))
        known = [Metric.SUCCESS_RATE, *collision, *index, *self.metrics]
        known += [f"{name}_{kind}" for name in (Metric.RETURN, Metric.LENGTH) for kind in kinds]
        for figure in figures:
            if figure not in known:
                return (
                    f"{setting}: {figure!r} is not measured in task {self.name!r}.{did_you_mean(figure, known)} "
                    f"It measures: {', '.join(known)}"
                )
        return None

    @property
    def minimised(self) -> frozenset[str]:
        """Figures of an evaluation of which less is better: whoever ranks or compares asks here."""
        return frozenset({*MINIMISED, *(name for name, measure in self.metrics.items() if measure.lower_is_better)})

    @property
    def primary_figures(self) -> tuple[str, ...]:
        """What a comparison gives a verdict on."""
        collision = () if self.collision is None else (Metric.COLLISION_RATE,)
        return self.primary or (Metric.SUCCESS_RATE, *collision, Metric.RETURN_MEAN)

    def holdout_scenarios(self) -> frozenset[str]:
        """Every scenario of a hold-out set."""
        return frozenset(s for name in self.holdout_sets for s in self.scenario_sets[name])
