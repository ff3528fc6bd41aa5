"""Settings of PPO training: what both arms of a comparison share, and what only initial weights may differ in."""

from collections.abc import Mapping
from dataclasses import asdict, field
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from pipeline.config.base import (
    Confidence,
    Count,
    Fraction,
    LibraryArguments,
    Name,
    NonNegative,
    Positive,
    Seed,
    Steps,
    configuration,
)
from pipeline.errors import shortened

OWNED_ARGUMENTS: Final[Mapping[str, str]] = {  # of SB3's PPO, and what decides them instead
    "policy": "training.network",
    "policy_kwargs": "training.network",
    "env": "the task and training.environment",
    "seed": "seeds",
    "learning_rate": "training.learning_rate",
    "verbose": "nothing: progress is shown anyway",
    "tensorboard_log": "nothing: everything is logged to MLflow",
    "device": "`device` of the task file",
    "rollout_buffer_class": "nothing: the observation space decides",
    "rollout_buffer_kwargs": "nothing: the observation space decides",
    "use_sde": "nothing: policy artifacts hold no state-dependent exploration",
    "sde_sample_freq": "nothing: policy artifacts hold no state-dependent exploration",
    "_init_setup_model": "nothing",
}


class _PPOArguments(TypedDict, total=False):
    """Those keyword arguments of stable_baselines3.PPO that a config sets; SB3 has the defaults."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # type: ignore[misc]

    n_steps: Count
    batch_size: Annotated[Count, Field(ge=2)]
    """Of one sample no advantage can be normalised."""
    n_epochs: Count
    gamma: Fraction
    gae_lambda: Fraction
    clip_range: NonNegative
    clip_range_vf: Positive | None
    normalize_advantage: bool
    ent_coef: NonNegative
    vf_coef: NonNegative
    max_grad_norm: NonNegative
    target_kl: Positive | None
    stats_window_size: Count


def _not_owned(arguments: Any) -> Any:
    for name in arguments if isinstance(arguments, dict) else ():
        if name in OWNED_ARGUMENTS:
            raise ValueError(f"{name} = {shortened(arguments[name])} is not set here; use {OWNED_ARGUMENTS[name]}")
    return arguments


PPOArguments = Annotated[_PPOArguments, BeforeValidator(_not_owned)]


@configuration
class Segment:
    """Evaluate every so many environment steps, up to a step (None: to the end)."""

    every_steps: Count = 16_000
    until_step: Count | None = None


@configuration
class EvaluationSchedule:
    """When and on what a policy in training is evaluated: fixed episodes, the same for every arm and seed."""

    segments: Annotated[tuple[Segment, ...], Field(min_length=1)] = (Segment(),)
    episodes: Count = 100
    seed: Seed = 7

    def __post_init__(self) -> None:
        *ends, last = [segment.until_step for segment in self.segments]
        if last is not None:
            raise ValueError("the last segment must not have until_step: it lasts to the end")
        bounded = [end for end in ends if end is not None]
        if bounded != ends:
            raise ValueError("only the last segment may lack until_step")
        if any(a >= b for a, b in pairwise(bounded)):
            raise ValueError("until_step must grow from segment to segment")


@configuration
class LearningRate:
    """Learning rate: constant, or linear from `initial` to `final`."""

    initial: NonNegative = 3e-4
    final: NonNegative | None = None
    over_steps: Count | None = None
    """Environment steps until it is `final`, and stays so; None: the budget, which then cannot be raised later."""

    def __post_init__(self) -> None:
        if self.over_steps is not None and self.final is None:
            raise ValueError(
                f"over_steps = {self.over_steps} needs final, the rate after them; give it, or leave both out"
            )


# subtle: below a setting that is looked at before it is validated, as arms are, an array is a list, and no tuple
Widths = Annotated[tuple[Count, ...], BeforeValidator(lambda given: tuple(given) if type(given) is list else given)]


@configuration
class Network:
    """The actor and the critic: separate multilayer perceptrons of the same shape, behind a CNN each for pictures."""

    hidden: Widths = (128, 128)
    activation: Literal["tanh", "relu"] = "tanh"
    image_features: Count = 128
    """Width of what the CNN hands on; without effect on observations that are no pictures."""


def _listed(figures: Any) -> Any:
    """One figure, or several, as a tuple."""
    return tuple(figures) if isinstance(figures, list) else (figures,)


@configuration
class AffineFigures:
    """Numbers inside a policy are `(raw - offset) / scale`; one figure for all elements, or one each in C order."""

    offset: Annotated[tuple[float, ...], Field(min_length=1), BeforeValidator(_listed)] = (0.0,)
    scale: Annotated[tuple[Positive, ...], Field(min_length=1), BeforeValidator(_listed)] = (1.0,)


@configuration
class ScalingSettings:
    """The units that policies compute in: `{observations: {all: {offset: 256, scale: 256}}}`."""

    measured: bool = True
    """What is not given is measured on the demonstrations, or read off large bounds where there are none; false leaves
    it as it is."""
    observations: dict[str, AffineFigures] = field(default_factory=dict)
    """By key of a Dict; of an observation without keys as `all`."""
    actions: AffineFigures | None = None


@configuration
class PPOTraining:
    """One PPO training. Two arms of a comparison share all of it."""

    scenario_set: Name = "train"
    total_timesteps: Count = 1_000_000
    n_envs: Count = 64
    network: Network = Network()
    initial_action_std: Positive = 1.0
    """Standard deviation of a fresh policy's actions, in the units it computes in; without effect on discrete ones."""
    orthogonal_init: bool = True
    """Fresh weights are orthogonal, those of the last layer of the actor small; false: as torch draws them."""
    learning_rate: LearningRate = LearningRate()
    normalize_reward: bool = False
    ppo: PPOArguments = field(default_factory=_PPOArguments)
    """Keyword arguments of stable_baselines3.PPO; misspelt ones are refused by name."""
    environment: LibraryArguments = field(default_factory=dict)
    """Keyword arguments of the environment in training and evaluation, e.g. reward_name, reward_kwargs."""
    use_camera: bool = False
    """Policies see pictures, as the task's `camera` says, instead of the environment's own observations."""
    evaluation: EvaluationSchedule = EvaluationSchedule()
    visualize_every: Steps = 0
    """Films of the policy, in the first training of every arm, at the first evaluation at or after every so many
    environment steps; 0: never."""
    checkpoint_every: Steps = 250_000
    """Environment steps between checkpoints, from which a killed training goes on; 0: none, it begins again. All
    episodes start anew there, so it belongs to what decides the result."""


@configuration
class Convergence:
    """Converged at the first of `patience` consecutive evaluations that all meet the task's thresholds."""

    patience: Count = 3
    stop: bool = True
    """End the training once converged."""


@configuration
class SACTraining:
    """SAC of an arm, with the defaults of stable_baselines3.SAC; what all arms share stands in `training`."""

    n_envs: Count = 1
    network: Network = Network(hidden=(256, 256), activation="relu")
    """Of the actor and of every critic; `training.network` is that of PPO."""
    learning_rate: Positive = 3e-4
    buffer_size: Count = 1_000_000
    learning_starts: Steps = 100
    """Environment steps of random actions before the first update."""
    batch_size: Annotated[Count, Field(ge=2)] = 256
    tau: Fraction = 0.005
    gamma: Fraction = 0.99
    train_freq: Count = 1
    """Steps of every environment between updates."""
    gradient_steps: Count = 1
    """Of every update."""
    ent_coef: NonNegative | Literal["auto"] = "auto"
    target_update_interval: Count = 1
    target_entropy: float | Literal["auto"] = "auto"
    critics: Annotated[Count, Field(le=100)] = 2
    """The smallest value that any of them gives is learnt from."""
    critic_layer_norm: bool | None = None
    """LayerNorm behind the hidden layers of the critics; None: exactly where demonstrations are in the batches."""


ADAPTIVE: Final = "adaptive"
Adaptive = Literal["adaptive"]


@configuration
class WarmStart:
    """What is done with pre-trained weights before and during PPO; a training from scratch has none of it.

    What is `adaptive` is decided in the training, by what is measured there; `warm_start: adaptive` makes all of it so.
    """

    clone_weights: Literal["kept"] | Adaptive = "kept"
    """What PPO begins with; adaptive: fresh weights, as from scratch, where the clone was judged to have learnt
    nothing, neither by its episodes nor by the actions that were held out."""
    critic_burn_in_steps: Steps | Adaptive = 0
    """Environment steps in which only the critic learns; adaptive: one rollout, unless it explains the returns."""
    critic_burn_in_learning_rate: Positive = 1e-3
    initial_action_std: Positive | Adaptive | None = 0.2
    """Standard deviation of the Gaussian policy at the start; None: the clone's; adaptive: a wider one where a trial
    shows that it is borne, else the clone's."""
    clone_penalty: NonNegative | Adaptive = 0.0
    """Weight of KL(clone || policy) added to the PPO loss; adaptive: until evaluations show no harm without it."""
    clone_penalty_fade_steps: Steps = 0
    """A fixed penalty fades linearly to 0 over these environment steps."""
    learning_rate_factor: NonNegative | Adaptive = 1.0
    """Of training.learning_rate; adaptive: smaller as long as there is a penalty, then 1; 0: the clone stays as it is,
    to the last bit."""

    @model_validator(mode="before")
    @classmethod
    def _all_of_it(cls, data: Any) -> Any:
        if isinstance(data, str) and data != ADAPTIVE:
            raise ValueError("input should be 'adaptive', or a mapping of settings")
        return asdict(ADAPTIVE_WARM_START) if data == ADAPTIVE else data

    def __post_init__(self) -> None:
        for name in ("critic_burn_in_steps", "clone_penalty"):
            if self.learning_rate_factor == 0 and getattr(self, name) not in (0, ADAPTIVE):
                raise ValueError(f"{name} is of no use where learning_rate_factor is 0: nothing is learnt; remove one")


ADAPTIVE_WARM_START: Final = WarmStart(
    clone_weights=ADAPTIVE,
    critic_burn_in_steps=ADAPTIVE,
    initial_action_std=ADAPTIVE,
    clone_penalty=ADAPTIVE,
    learning_rate_factor=ADAPTIVE,
)


@configuration
class Cloning:
    """Behavioural cloning of the actor, then the critic on discounted returns."""

    epochs: Count = 20
    batch_size: Count = 256
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    validation_fraction: Fraction = 0.1
    loss: Literal["nll", "mse"] = "nll"
    entropy_weight: NonNegative = 0.0
    critic_epochs: Steps = 20
    critic_learning_rate: Positive = 1e-3
    gamma: Fraction = 0.99
    evaluate_every_epochs: Count = 5
    select: Literal["rollout", "validation_loss"] = "rollout"


@configuration
class Judgement:
    """Has a clone learnt: against its untrained self, random play, the best constant action and its demonstrator."""

    episodes: Annotated[Count, Field(ge=2)] = 100
    """Of the final evaluation the first so many, which all of these play too."""
    learnt_share: Fraction = 0.9
    """Of the way to the demonstrator from the better of constant action and random play: enough to have learnt it."""
    least_share: Fraction = 0.05
    """Of the same way: who comes less far has failed, however certain it is that there was a step. Who failed and comes
    less far from the constant action to the held-out actions, too, has learnt nothing."""
    confidence: Confidence = 0.95
    """Of the intervals by which a clone is better than its yardsticks, or as good as its demonstrator."""


@configuration
class Discriminator:
    """The network of GAIL and AIRL that tells the demonstrator's steps from the policy's; the reward comes from it."""

    hidden: tuple[Count, ...] = (64, 64)
    learning_rate: Positive = 1e-3
    batch_size: Count = 1024
    """Demonstrated steps in an update; as many of the policy's own come with them."""
    updates_per_rollout: Count = 4


@configuration
class AdversarialTraining:
    """PPO of GAIL and AIRL, on the discriminator's reward; the task's own reward is never seen."""

    total_timesteps: Count
    """Environment steps; whole rollouts of ppo.n_steps in n_envs are played, never more than this."""
    n_envs: Count = 64
    learning_rate: Positive = 3e-4
    """Constant: the library starts PPO's schedule anew with every rollout."""
    ppo: PPOArguments = field(default_factory=_PPOArguments)
    """Keyword arguments of stable_baselines3.PPO; misspelt ones are refused by name."""
    discriminator: Discriminator = Discriminator()


@configuration
class Dagger:
    """DAgger: the clone drives, the demonstrator says what it would have done, and all of it is cloned again."""

    rounds: Count
    """Rounds of driving; before the first the dataset alone is cloned. Every cloning takes `cloning.epochs`."""
    episodes_per_round: Count = 40
    rampdown_rounds: Count = 1
    """The share of steps that the demonstrator drives falls linearly from 1 (the dataset) to 0 after so many rounds."""
    n_envs: Count = 40
