"""One dataclass a stage: what its YAML may say. The default of every setting stands here and nowhere else."""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from pipeline.config.base import (
    Bound,
    Confidence,
    Count,
    LibraryArguments,
    Name,
    NonNegative,
    Positive,
    Seed,
    Seeds,
    Steps,
    configuration,
)
from pipeline.config.sweep import Sweep
from pipeline.config.task import SMALLEST_DIFFERENCE, TaskConfig, Wrapper
from pipeline.config.training import (
    ADAPTIVE,
    ADAPTIVE_WARM_START,
    AdversarialTraining,
    Cloning,
    Convergence,
    Dagger,
    EvaluationSchedule,
    Judgement,
    Network,
    PPOTraining,
    SACTraining,
    ScalingSettings,
    WarmStart,
)
from pipeline.errors import BadInput, did_you_mean, shortened
from pipeline.names import ARMS, START


@configuration
class TrainExpert:
    """`train_expert`: PPO over several seeds; the best policy becomes the candidate."""

    task: str
    seeds: Seeds = (1, 2, 3)
    training: PPOTraining = PPOTraining()
    scaling: ScalingSettings = ScalingSettings()
    convergence: Convergence = Convergence()
    best_metric: str = "eval_episode_return"
    final_episodes: Count = 200
    """Episodes per seed of the final evaluation of the best checkpoint."""
    workers: Count = 2
    """Seeds trained side by side, one process and one thread each."""


@configuration
class GateRule:
    """One threshold of the gate, which must hold on every evaluation seed."""

    scenario_set: Name
    metric: str
    min: float | None = None
    max: float | None = None
    confidence: Confidence | None = None
    """None compares the mean; 0.95 compares the unfavourable end of the 95 % interval."""

    def __post_init__(self) -> None:
        if (self.min is None) == (self.max is None):
            raise ValueError("a rule needs exactly one of min and max")

    def bound(self) -> Bound:
        return Bound(min=self.min, max=self.max)


@configuration
class Promote:
    """`promote`: the gate between candidate and approved."""

    task: str
    rules: Annotated[tuple[GateRule, ...], Field(min_length=1)]
    seeds: Seeds = (101, 102, 103)
    episodes: Annotated[int, Field(ge=100)] = 200
    """Episodes per evaluation seed and scenario set."""
    training_seeds: bool = True
    """Also hold every seed of a multi-seed training to the rules, not only the candidate itself."""
    action: Literal["approve", "roll_back"] = "approve"
    sign: str | None = None
    """File of a private OpenSSH key: its owner signs a version that passed the gate, which judges nothing this time."""

    def __post_init__(self) -> None:
        if self.action == "roll_back" and self.sign is not None:
            raise ValueError("action 'roll_back' and sign exclude each other; give one of them")


FORMATS: Final = (
    "minari",
    "npz",
    "lerobot",
    "imitation",
    "robomimic",
)  # of demonstrations that were recorded elsewhere
SOURCES: Final = ("scripted", *FORMATS, "repaired")


@configuration
class Noise:
    """Execution noise while recording: the action played is disturbed, the label stays clean (DART)."""

    std: NonNegative = 0.3
    """Standard deviation of Gaussian noise, as a share of the half range; for discrete actions the chance of a random
    one."""


@configuration
class Filter:
    """Which recorded episodes are kept."""

    min_return: float | None = None
    only_success: bool = False

    @property
    def drops(self) -> bool:
        """Whether it may leave an episode out."""
        return self.min_return is not None or self.only_success


@configuration
class Scripted:
    """A scripted demonstrator: `module:Class` with `reset()` and `act(observation)`, or `module:function`."""

    demonstrator: str
    kwargs: LibraryArguments = field(default_factory=dict)


@configuration
class Foreign:
    """Demonstrations that were recorded elsewhere and become a dataset of ours (formats: docs/datasets.md)."""

    path: str
    """The file, or the folder of the dataset."""
    scenario: Name | None = None
    """Scenario of the task that its episodes belong to; None reads the scenarios which our own export wrote down."""
    leave_out: tuple[Steps, ...] = ()
    """Episodes that are not taken, by their number in the file, from 0; the dataset says which."""
    clip_actions: bool = False
    """Put actions that are outside of a Box into it, as environments do that clip what they are given; the dataset says
    how many."""
    behind_wrappers: bool = False
    """It was recorded through the task's wrappers; a set that does not say is else taken to have passed none."""


@configuration
class Repaired:
    """A repaired copy of a dataset of the store: it becomes a dataset of its own, linked to the one it replaces."""

    dataset: str
    """The dataset that was repaired: its id or the run that recorded it."""
    folder: str | None = None
    """Folder with the repaired `trajectories.npz` and `metadata.json`; None: the dataset's own, less `leave_out`."""
    leave_out: tuple[Steps, ...] = ()
    """Episodes that the copy does without, by their number, from 0."""


@configuration
class Collect:
    """`collect`: demonstrations of the approved expert, unless another source is given."""

    task: str
    scenario_set: Name = "train"
    episodes: Count = 200
    seeds: Seeds = (42, 43, 44)
    noise: Noise = Noise()
    filter: Filter = Filter()
    scripted: Scripted | None = None
    minari: Foreign | None = None
    npz: Foreign | None = None
    lerobot: Foreign | None = None
    imitation: Foreign | None = None
    robomimic: Foreign | None = None
    repaired: Repaired | None = None
    n_envs: Count = 64
    """Episodes side by side, at most 16 unless the environment is batched; what is recorded does not depend on it."""
    min_episodes: Count = 20
    """Fewer kept episodes than this quarantine the dataset."""
    replay_episodes: Steps = 200
    """Episodes that validation simulates again from seed and actions, bit for bit."""
    environment: LibraryArguments = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give at most one")

    @property
    def source(self) -> str:
        """What it takes its demonstrations from: `expert`, or one of `SOURCES`."""
        return next((name for name in SOURCES if getattr(self, name) is not None), "expert")

    @property
    def foreign(self) -> Foreign | None:
        """Where demonstrations of others are, if it takes those."""
        return self.minari or self.npz or self.lerobot or self.imitation or self.robomimic


@configuration
class Validate:
    """`validate`: hold a recorded dataset to the whole catalogue again."""

    task: str
    min_episodes: Count = 20
    replay_episodes: Steps = 200
    """Episodes that are simulated again from seed and actions."""


@configuration
class Playback:
    """`playback`: look at a dataset: statistics, outliers, animated episodes, re-simulation."""

    task: str
    episodes: tuple[Steps, ...] = (0,)
    inspect_only: bool = False
    frames_per_second: Positive = 10.0
    video: Literal["auto", "gif", "mp4"] = "auto"
    """Format of the animations; auto takes GIF where it stays below 4 MB, and H.264 otherwise."""


# settings of cloning that an algorithm has no use for
_NO_CLONING = ("epochs", "learning_rate", "weight_decay", "loss", "entropy_weight", "evaluate_every_epochs", "select")
UNUSED_CLONING = {
    "bc": (),
    "gail": _NO_CLONING,
    "airl": _NO_CLONING,
    "dagger": ("weight_decay", "loss", "evaluate_every_epochs", "select"),
}


@configuration
class Pretrain:
    """`pretrain`: clone a validated dataset into PPO policies, one clone a seed."""

    task: str
    algorithm: Literal["bc", "gail", "airl", "dagger"] = "bc"
    """bc learns from the dataset alone; the others also play in the environment, and need their section."""
    seeds: Seeds = (1,)
    """Fine-tuning of seed s starts from the clone of seed s, so that matched seeds do not share one lucky clone."""
    episodes: Count | None = None
    """So many of the dataset's episodes, drawn once for all seeds, a smaller number out of a larger; None: all."""
    use_camera: bool = False
    """Clones see pictures: the demonstrations are simulated again in front of the task's `camera`."""
    network: Network = Network()
    scaling: ScalingSettings = ScalingSettings()
    """Of the clones, of what is trained from them, and of the baseline that is compared with that."""
    cloning: Cloning = Cloning()
    """All of it for bc; the others take the critic, gamma and what is held out from here, dagger its cloning too."""
    training: AdversarialTraining | None = None
    """Of gail and airl."""
    dagger: Dagger | None = None
    evaluation: EvaluationSchedule = EvaluationSchedule()
    """When gail and airl are evaluated is decided by its segments; bc is by epochs, dagger after every round."""
    scenario_set: Name = "train"
    final_episodes: Count = 200
    judgement: Judgement = Judgement()
    workers: Count = 2
    """Clones made side by side, one process and one thread each, which holds the demonstrations; of dagger one."""

    def __post_init__(self) -> None:
        if self.use_camera and self.algorithm != "bc":
            raise ValueError(f"use_camera is for algorithm 'bc' alone, not for {self.algorithm!r}; remove one of them")
        adversarial = self.algorithm in ("gail", "airl")
        for section, wanted in (("training", adversarial), ("dagger", self.algorithm == "dagger")):
            if wanted and getattr(self, section) is None:
                raise ValueError(f"algorithm {self.algorithm!r} needs the section {section!r}; add it")
            if not wanted and getattr(self, section) is not None:
                raise ValueError(f"the section {section!r} is not for algorithm {self.algorithm!r}; remove it")
        for name in UNUSED_CLONING[self.algorithm]:
            if getattr(self.cloning, name) != getattr(Cloning(), name):
                value = getattr(self.cloning, name)
                raise ValueError(f"cloning.{name} = {value} is not for algorithm {self.algorithm!r}; remove it")
        if not adversarial and self.evaluation.segments != EvaluationSchedule().segments:
            raise ValueError(f"evaluation.segments is not for algorithm {self.algorithm!r}; remove it")


@configuration
class FurtherArm:
    """One more arm of a comparison: the same task, seeds, budget and evaluation, trained in another way."""

    algorithm: Literal["ppo", "sac"] = "ppo"
    """ppo starts from the clones, as `warm_start` says; sac starts from fresh weights, in the units of the clones."""
    weights: Literal["fresh", "clone", "residual"] | None = None
    """Where they come from; residual: the clone does not learn, but a correction that is added to what it says, and the
    critic; None: the clone for ppo, fresh for sac."""
    warm_start: WarmStart | None = None
    """Of ppo."""
    policy: str | None = None
    """Another policy for ppo to start from, named as the reference `policy` of `finetune` is: clone or expert."""
    dataset: str | None = None
    """Clones of another dataset, by its id or the run that recorded it."""
    episodes: Count | None = None
    """Clones of so many episodes of the dataset. Those of another dataset or size come from a `pretrain` with the
    settings of the other arms' clones; `main` runs it. Of sac: demonstrations of so many episodes of it."""
    sac: SACTraining | None = None
    """Of sac; None: all defaults."""
    demonstrations: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of every batch of sac that comes from the demonstrations behind the clones, as in RLPD; 0: plain SAC."""

    def __post_init__(self) -> None:
        sac = self.algorithm == "sac"
        for name, given in (("sac", self.sac is not None), ("demonstrations", self.demonstrations > 0)):
            if given and not sac:
                raise ValueError(f"{name} is not for algorithm {self.algorithm!r}; remove it, or use algorithm 'sac'")
        for name in ("warm_start", "policy"):
            if sac and getattr(self, name) is not None:
                raise ValueError(f"{name} is not for algorithm 'sac', which starts from fresh weights; remove it")
        if sac and self.dataset is not None:
            raise ValueError(
                "dataset is not for algorithm 'sac': its demonstrations are those behind the clones; remove it"
            )
        if sac and self.episodes is not None and not self.demonstrations:
            raise ValueError(
                "episodes is for demonstrations in the batches of sac, and there are none; give their share"
            )
        if sac and self.weights not in (None, "fresh"):
            raise ValueError(f"weights = {self.weights!r} is not for algorithm 'sac', which starts from fresh ones")
        if not sac and self.weights == "fresh":
            raise ValueError("ppo from fresh weights is the arm 'scratch', which every comparison has; remove this one")
        if not sac and self.warm_start is None:
            raise ValueError("algorithm 'ppo' needs warm_start; add it, for instance: warm_start: adaptive")
        if self.policy is not None and (self.dataset is not None or self.episodes is not None):
            raise ValueError("policy excludes dataset and episodes, which say what clones are made of; give one")
        batch = (self.sac or SACTraining()).batch_size
        count = round(self.demonstrations * batch)
        if self.demonstrations and not 0 < count < batch:
            raise ValueError(
                f"demonstrations = {self.demonstrations} of a batch of {batch} are {count} transitions; at least one "
                "must be a demonstration and one must not"
            )

    @property
    def own_clones(self) -> bool:
        """Does it start from clones of another dataset or size than the other arms?"""
        return self.algorithm == "ppo" and (self.dataset is not None or self.episodes is not None)

    def cloning(self, shared: Pretrain) -> Pretrain:
        """The config of the `pretrain` that makes its clones, from that of the other arms' clones."""
        return replace(shared, episodes=self.episodes or shared.episodes)


SHIPPED_ARMS: Final[Mapping[str, Mapping[str, Any]]] = {  # what most comparisons ask for, by name alone
    "clone": {"warm_start": {"initial_action_std": None, "learning_rate_factor": 0.0}},
    "naive": {"warm_start": {"initial_action_std": None}},
    # burn-in of the critic first, as Silver et al. (2018) do
    "residual": {
        "weights": "residual",
        "warm_start": {"critic_burn_in_steps": ADAPTIVE, "initial_action_std": ADAPTIVE},
    },
    "sac": {"algorithm": "sac"},
    "sac_demos": {"algorithm": "sac", "demonstrations": 0.5},  # RLPD: Ball et al. (2023)
}


def _shipped(arms: Any) -> Any:
    """`[naive, clone]`, or entries of a mapping that say nothing: what ships under these names."""
    if isinstance(arms, list) and all(isinstance(name, str) for name in arms):
        twice = [name for name in arms if arms.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is named twice")
        arms = dict.fromkeys(arms)
    if not isinstance(arms, dict):
        return arms
    for name, settings in arms.items():
        if settings is None and name not in SHIPPED_ARMS:
            raise ValueError(
                f"{shortened(name)} is no arm that ships.{did_you_mean(name, SHIPPED_ARMS)} There are: "
                f"{', '.join(SHIPPED_ARMS)}; say what any other is: {{{name}: {{warm_start: adaptive}}}}"
            )
    return {name: SHIPPED_ARMS[name] if settings is None else settings for name, settings in arms.items()}


def _not_taken(arms: dict[str, FurtherArm]) -> dict[str, FurtherArm]:
    for name in arms:
        if name in (*ARMS, START):
            raise ValueError(f"{name!r} is an arm of every comparison; give this one another name")
    return arms


@configuration
class Finetune:
    """`finetune` and `baseline`: PPO from the clone and from scratch. One config: only initial weights differ."""

    task: str
    seeds: Seeds = (1, 2, 3, 4, 5)
    training: PPOTraining = PPOTraining()
    warm_start: WarmStart = ADAPTIVE_WARM_START
    arms: Annotated[dict[Name, FurtherArm], BeforeValidator(_shipped), AfterValidator(_not_taken)] = field(
        default_factory=dict
    )
    """Further arms beside `scratch` and `pretrained`, by their names; `finetune` trains them, `compare` ranks them."""
    control_timesteps: Steps = 32_768
    """Budget of the learning-rate-0 controls (their weights cannot change); 0 leaves them out."""
    final_episodes: Count = 200
    workers: Count = 2
    reuse: bool = True
    """Take over trainings of this store that finished with an equal content key, instead of training them again."""


@configuration
class Evaluate:
    """`evaluate`: any policy, or the scripted demonstrator if one is given, on any scenario set."""

    task: str
    scripted: Scripted | None = None
    scenario_set: Name = "train"
    episodes: Count = 200
    seed: Seed = 1234
    deterministic: bool = True
    pictures: Steps = 0
    """The first so many episodes are played again and drawn as animated pictures."""
    environment: LibraryArguments = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pictures > self.episodes:
            raise ValueError(f"pictures = {self.pictures} is more than episodes = {self.episodes}")
        if self.pictures and not self.deterministic and self.scripted is None:
            raise ValueError(
                f"pictures = {self.pictures}: an episode of drawn actions (deterministic = false) cannot be played "
                "again; use pictures = 0"
            )


@configuration
class Compare:
    """`compare`: matched-seed comparison of the runs of a group."""

    task: str
    target: dict[str, Bound] = field(default_factory=dict)
    """Figure -> bound that counts as solved; empty takes the task's thresholds."""
    patience: Count = 3
    ratio_target: Positive = 0.70
    resamples: Count = 10_000
    seed: Seed = 0
    playback_episodes: Steps = 4
    """Episodes shown side by side, at most: of the fine-tuned policy one of median return, its worst, a failure, and
    one of the hold-out scenarios."""

    def solved(self, task: TaskConfig) -> dict[str, Bound]:
        """Figure -> bound that counts as solved. Raises BadInput where nothing does, or nobody measures it."""
        target = self.target or task.thresholds
        smallest = task.smallest_difference.keys() - SMALLEST_DIFFERENCE.keys()
        fault = task.unmeasured("target", target)
        fault = fault or task.unmeasured("smallest_difference", sorted(smallest), spread=True)
        if not target:
            fault = f"target is empty, and so are the thresholds of task {task.name!r}; give a figure with its bound"
        if fault is not None:
            raise BadInput(f"compare: {fault}")
        return target


@configuration
class NewTask:
    """`new_task`: probe an environment and write the configs of a task for it. Nothing is overwritten."""

    env: str
    """Gymnasium id, or `module:Class`."""
    name: Name
    """Of the task: `configs/tasks/<name>.yaml` and `configs/<name>/` are written."""
    kwargs: LibraryArguments = field(default_factory=dict)
    wrappers: tuple[Wrapper, ...] = ()
    demonstrator: str | None = None
    """A scripted demonstrator, `module:Class` or `module:function`; None: an expert is trained."""
    episodes: Annotated[int, Field(ge=2)] = 20
    """Random episodes that are played to learn what the environment is like."""
    seed: Seed = 0
    folder: str = "configs"


StageConfig = str | dict[str, Any]


@configuration
class StageConfigs:
    """The stage configs that `main` runs: the path of each, or its settings themselves."""

    collect: StageConfig
    pretrain: StageConfig
    finetune: StageConfig
    compare: StageConfig
    train_expert: StageConfig | None = None
    """None: the expert is given to `main`, or none is needed."""
    promote: StageConfig | None = None
    """Given exactly when `collect` records from an expert."""


@configuration
class Main:
    """`main`: every stage for one task. A setting that is None leaves the stage's own config as it is."""

    stages: StageConfigs
    experiment_name: str | None = None
    group: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,100}$")] | None = None
    """Name of the comparison. None: that of the run, or of the comparison whose trainings are all reused."""
    reuse: bool = True
    """Take over stages and trainings of this store that finished with an equal content key; false does all anew."""
    seed: Seed | None = None
    """First of the consecutive seeds of every stage."""
    matched_seeds: Count | None = None
    """How many seeds are cloned, fine-tuned and trained from scratch: consecutive ones from the first on."""
    datasets: Count = 1
    """How many sets of demonstrations are recorded, independently of each other; the matched seeds are shared out among
    them, and intervals are over datasets. At least 3, or 1: then that one is fixed, and no interval says how another
    would do."""
    demonstration_episodes: Count | None = None
    cloning_epochs: Count | None = None
    ppo_timesteps: Steps | None = None
    """Budget of fine-tuning and baseline; 0 skips both and the comparison."""
    parallel_environments: Count | None = None
    learning_rate: Positive | None = None
    use_camera: bool | None = None
    """Clones, fine-tuned policies and baselines see pictures; the expert and its demonstrations stay as they are."""
    visualize_every: Steps | None = None
    """Films of a policy of each arm every so many environment steps of its training; 0: never."""
    skip_pretrain: bool = False
    finetune_failed_clones: bool = False
    """Go on with clones that `pretrain` says have learnt nothing, instead of stopping there."""
    overrides: dict[str, str] = field(default_factory=dict)
    """`<stage>.<setting>` -> value, on top of the stage's config and of all the above. On the command line each is an
    override of its own: `-P finetune.warm_start.clone_penalty=0.1`."""


@configuration
class Reproduce:
    """`reproduce`: a finished training, cloning or recording again, from its record."""

    keep: bool = False
    """Store what was made again even when it is equal; when it is not, it is stored anyway."""


STAGE_CONFIGS: dict[str, Any] = {
    "train_expert": TrainExpert,
    "promote": Promote,
    "collect": Collect,
    "validate": Validate,
    "playback": Playback,
    "pretrain": Pretrain,
    "finetune": Finetune,
    "baseline": Finetune,
    "evaluate": Evaluate,
    "compare": Compare,
    "sweep": Sweep,
    "new_task": NewTask,
    "main": Main,
    "reproduce": Reproduce,
}
