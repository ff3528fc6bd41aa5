"""Behavioural cloning: the actor on the demonstrator's clean actions, then the critic on discounted returns.

    result = clone(policy, trajectories, settings, seed=1, evaluate=lambda policy: run_episodes(...))

A plain loop over tensors that are loaded once, through the actor alone; pictures stay bytes until a batch is read. The
policy is changed in place and ends as the best one seen. Where the data comes from, whether it may be used, and what
is logged is decided elsewhere.

What the policy scales stands outside of all that is learnt here: labels and losses are in its units, what is logged of
likelihood, entropy, error and spread is in those of the actions.

Conventions of SB3 that matter here: a Gaussian policy is not squashed, its mean is compared with labels inside the
action bounds and clipped only when it acts; its standard deviation does not depend on the state and is learnt too
(trained on the mean alone it would stay at 1 and PPO would unlearn the clone in its first updates).
"""

import copy
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn
from torch.nn import functional

from pipeline.config.training import Cloning
from pipeline.data import REWARDS, Trajectories
from pipeline.data.observations import from_rows, row_dtype
from pipeline.errors import BadInput, shortened
from pipeline.learning.divergence import Diverged, not_finite
from pipeline.play.evaluation import EpisodeRecords, point_figures
from pipeline.policies import load_tensors, scaling_of, tensors_of

MIN_LOG_STD = -5.0  # a demonstrator that is copied exactly would drive the spread to 0 and the loss to minus infinity
_CHUNK = 16_384  # rows of one forward pass without gradient
_PICTURES = 256  # the same through a convolutional network, whose activations are large


@dataclass(frozen=True)
class EpochPoint:
    """After an epoch of the actor, of which epoch 0 is the untrained policy, or of the critic."""

    epoch: int
    metrics: Mapping[str, float]  # bc/... or critic/train_loss, critic/val_loss, critic/explained_variance
    records: EpisodeRecords | None = None  # rollouts of the deterministic policy, on evaluated epochs


@dataclass(frozen=True)
class CloningResult:
    """What cloning came to; the policy it was given holds the best actor and the trained critic."""

    epochs: tuple[EpochPoint, ...]
    critic_epochs: tuple[EpochPoint, ...]
    best_epoch: int
    train_episodes: np.ndarray  # (N_train,) int64 indices of the trajectories
    held_out_episodes: np.ndarray  # (N_val,) int64
    samples_per_second: float  # of the actor's gradient steps; NaN where that was not measured
    wall_seconds: float
    beats_untrained: bool  # is the best epoch better than epoch 0 by the measure that chose it
    environment_steps: int = 0  # played to learn from, evaluations apart

    @property
    def critic_explained_variance(self) -> float:
        """Of held-out returns, by the critic that was kept; NaN when none was trained."""
        kept = min(self.critic_epochs, key=lambda point: point.metrics["critic/val_loss"], default=None)
        return kept.metrics["critic/explained_variance"] if kept else math.nan


EvaluatePolicy = Callable[[ActorCriticPolicy], EpisodeRecords]
OnPoint = Callable[[EpochPoint], None]


def check_demonstrations(
    observation_space: gym.Space[Any], action_space: gym.Space[Any], trajectories: Trajectories
) -> None:
    """Raise BadInput unless observations and actions have the shapes of these spaces."""
    for what, space, array in (
        ("observations", observation_space, trajectories.observations),
        ("actions", action_space, trajectories.actions),
    ):
        needed = row_dtype(space)
        if array.shape[1:] != needed.shape or array.dtype.names != needed.base.names:
            given = f"{shortened(array.dtype.names)} of " if array.dtype.names else ""
            raise BadInput(f"demonstrations: {what} have shape {given}{array.shape[1:]}, the policy needs {space}")


def split_by_episode(returns: np.ndarray, validation_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of training and held-out episodes: `round(fraction * N)` held out, at least one of each.

    Stratified by the episodes' `returns` (N,): one is drawn from the middle of every group of neighbours in return, so
    that rare failures are held out in proportion. Without it held-out returns may lack what the critic finds hardest.
    Returns that nobody knows are NaN: then groups are of any episodes.
    """
    episodes = len(returns)
    if episodes < 2:
        raise BadInput(f"cloning needs at least 2 episodes, one of them to hold out, got {episodes}; record more")
    held_out = min(max(round(validation_fraction * episodes), 1), episodes - 1)
    rng = np.random.default_rng([seed, 1])
    shuffled = rng.permutation(episodes)  # equal returns in no particular order
    groups = np.array_split(shuffled[np.argsort(returns[shuffled], kind="stable")], held_out)
    chosen = np.sort([rng.choice(group[len(group) // 4 : len(group) - len(group) // 4]) for group in groups])
    return np.setdiff1d(np.arange(episodes), chosen), chosen


class Course:
    """The points of an actor's training in their order, and the epoch and tensors of the best policy among them.

    Ranked by success rate, then mean return, where it was evaluated; or by validation loss. Ties: the earlier. The
    untrained policy (epoch 0) is the best one only until another was ranked: it has learnt nothing to hand on.
    """

    def __init__(self, on_point: OnPoint, select: str = "rollout") -> None:
        self._on_point, self._select = on_point, select
        self._value: Any = None
        self._untrained: Any = None
        self.points: list[EpochPoint] = []
        self.best: dict[str, torch.Tensor] = {}
        self.best_epoch = 0

    def add(
        self, policy: ActorCriticPolicy, epoch: int, metrics: Mapping[str, float], records: EpisodeRecords | None = None
    ) -> None:
        self.points.append(EpochPoint(epoch, metrics, records))
        self._on_point(self.points[-1])
        value: Any = None
        if self._select == "validation_loss":
            value = -metrics["bc/val_loss"]
        elif records is not None:
            figures = point_figures(records)
            value = figures["success_rate"], figures["return_mean"]
        if value is None:
            return
        if epoch == 0:
            self._untrained, self.best = value, tensors_of(policy)
        elif self._value is None or value > self._value:
            self._value, self.best, self.best_epoch = value, tensors_of(policy), epoch

    @property
    def beats_untrained(self) -> bool:
        """Is the best trained policy better than the untrained one."""
        return self._value is not None and bool(self._value > self._untrained)


def clone(
    policy: ActorCriticPolicy,
    trajectories: Trajectories,
    settings: Cloning,
    seed: int,
    evaluate: EvaluatePolicy | None = None,
    on_point: OnPoint = lambda _: None,
) -> CloningResult:
    """Train actor and critic of `policy` in place on the demonstrations; the same arguments give the same bits.

    `evaluate` plays the policy on the first point, every `evaluate_every_epochs` and after the last epoch;
    its figures are ranked by success rate, then mean return.
    Raises BadInput when the demonstrations do not fit the policy or there are too few to hold any out; Diverged, the
    policy being the best one seen, when a loss is no number any more.
    """
    started = time.perf_counter()
    check_demonstrations(policy.observation_space, policy.action_space, trajectories)
    if settings.select == "rollout" and evaluate is None:
        raise BadInput("cloning.select = 'rollout' needs rollout evaluations; use 'validation_loss' without them")
    train_episodes, held_out = split_by_episode(trajectories.returns(), settings.validation_fraction, seed)
    inputs, space = _Inputs(policy, policy.pi_features_extractor, trajectories), policy.action_space
    if isinstance(space, spaces.Box):
        clipped = np.clip(trajectories.actions, space.low, space.high).reshape(trajectories.steps, -1)
        units = scaling_of(policy).actions
        labels = torch.as_tensor(clipped if units is None else units.inward(clipped), dtype=torch.float32)
    else:
        labels = torch.as_tensor(trajectories.actions.reshape(trajectories.steps, -1), dtype=torch.int64)

    def samples(episodes: np.ndarray) -> _Samples:
        steps = _steps(trajectories, episodes)
        return _Samples(inputs, torch.as_tensor(trajectories.step_rows[steps]), labels[torch.as_tensor(steps)])

    train, validation, actor = samples(train_episodes), samples(held_out), _Actor(policy, settings)
    optimizer = torch.optim.Adam(
        actor.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    course, seconds = Course(on_point, settings.select), 0.0
    for epoch in range(settings.epochs + 1):
        if epoch > 0:
            began = time.perf_counter()
            order = torch.randperm(len(train.rows), generator=generator)
            for x, y in train.batches(settings.batch_size, order):
                optimizer.zero_grad()
                actor.differentiate(x, y)
                optimizer.step()
            if actor.log_std is not None:
                with torch.no_grad():
                    actor.log_std.clamp_(min=MIN_LOG_STD)
            seconds += time.perf_counter() - began
        metrics = actor.curves(train, validation)
        weights, losses = not_finite(policy), metrics["bc/train_loss"] + metrics["bc/val_loss"]
        if weights is not None or not math.isfinite(losses):
            if course.points:
                load_tensors(policy, course.best)
            raise Diverged(
                f"cloning of seed {seed} diverged in epoch {epoch}: {weights or 'its loss'} is not finite; lower "
                f"cloning.learning_rate (now {settings.learning_rate:g})"
            )
        due = epoch % settings.evaluate_every_epochs == 0 or epoch == settings.epochs
        records = evaluate(policy) if evaluate is not None and due else None
        course.add(policy, epoch, metrics, records)
    load_tensors(policy, course.best)
    return CloningResult(
        epochs=tuple(course.points),
        critic_epochs=train_critic(policy, trajectories, train_episodes, held_out, settings, seed, on_point),
        best_epoch=course.best_epoch,
        train_episodes=train_episodes,
        held_out_episodes=held_out,
        samples_per_second=settings.epochs * len(train.rows) / seconds,
        wall_seconds=time.perf_counter() - started,
        beats_untrained=course.beats_untrained,
    )


class _Inputs:
    """Observations as tensors, held once however many sets draw from them, as a part of the policy reads them.

    They lie in memory, where large pictures fit; what the policy learns on gets a batch at a time.
    """

    def __init__(self, policy: ActorCriticPolicy, extractor: nn.Module, data: Trajectories) -> None:
        self._policy, self._extractor, self.device = policy, extractor, policy.device
        # (S + N, features) float32; for a convolutional extractor as recorded, one tensor or one a key
        self._rows: Any = obs_as_tensor(from_rows(data.observations), torch.device("cpu"))
        self._learns = any(True for _ in extractor.parameters())
        self.chunk = _PICTURES if self._learns else _CHUNK
        if not self._learns:
            with torch.no_grad():
                self._rows = self._read(self._rows).to("cpu", torch.float32)

    def _read(self, rows: Any) -> torch.Tensor:
        rows = (
            {key: part.to(self.device) for key, part in rows.items()}
            if isinstance(rows, dict)
            else rows.to(self.device)
        )
        scaled = preprocess_obs(rows, self._policy.observation_space, normalize_images=self._policy.normalize_images)
        features: torch.Tensor = self._extractor(scaled)
        return features

    def features(self, rows: torch.Tensor, size: int | None = None) -> Iterator[torch.Tensor]:
        """(n, features) of the given rows (n,) int64, `size` of them at a time, or as many as fit into memory."""
        if not self._learns:
            # small: all at once is faster
            yield from self._rows[rows].to(self.device).split(size or self.chunk)
            return
        for few in rows.split(size or self.chunk):
            mapping = isinstance(self._rows, dict)
            yield self._read({k: v[few] for k, v in self._rows.items()} if mapping else self._rows[few])


@dataclass(frozen=True)
class _Samples:
    """Rows of the inputs, and what is to be learnt for each."""

    inputs: _Inputs
    rows: torch.Tensor  # (n,) int64
    y: torch.Tensor  # (n, dims) float32 or int64 labels; (n,) float32 returns

    def batches(
        self, size: int | None = None, order: torch.Tensor | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(features, targets) of `size` samples each, the last of the rest; by default as many as fit into memory."""
        rows, y = (self.rows, self.y) if order is None else (self.rows[order], self.y[order])
        targets = y.to(self.inputs.device).split(size or self.inputs.chunk)
        yield from zip(self.inputs.features(rows, size), targets, strict=True)


def _steps(data: Trajectories, episodes: np.ndarray) -> np.ndarray:
    """(n,) int64: the steps of some episodes."""
    chosen = np.zeros(len(data), bool)
    chosen[episodes] = True
    return np.flatnonzero(np.repeat(chosen, data.lengths))


class _Actor:
    """The actor behind its features extractor, and what it is taught by."""

    def __init__(self, policy: ActorCriticPolicy, settings: Cloning) -> None:
        self._settings, self._extractor = settings, policy.pi_features_extractor
        self._head = nn.Sequential(*policy.mlp_extractor.policy_net, policy.action_net)
        self.log_std: nn.Parameter | None = getattr(policy, "log_std", None)
        space, units = policy.action_space, scaling_of(policy).actions
        scale = torch.ones(1) if units is None else torch.from_numpy(units.scale)
        self._stretch = float(scale.log().sum())  # how much wider actions are spread than what the head gives
        self._scale = scale.to(policy.device)
        self._choices = space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else []
        self._binary = isinstance(space, spaces.MultiBinary)

    def parameters(self) -> list[nn.Parameter]:
        spread = [self.log_std] if self.log_std is not None else []
        return [*self._extractor.parameters(), *self._head.parameters(), *spread]

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean over the batch of the negative log-likelihood (or squared error), minus the weighted entropy."""
        output: torch.Tensor = self._head(x)  # (n, outputs): the mean of a Gaussian, or logits
        if self._settings.loss == "nll":
            loss = self._negative_log_likelihood(output, y)
        elif self.log_std is not None:
            loss = functional.mse_loss(output, y)
        else:
            loss = _sum(
                functional.mse_loss(part.softmax(dim=1), functional.one_hot(label, part.shape[1]).float())
                for part, label in zip(self._logits(output), y.unbind(dim=1), strict=True)
            )
        if self._settings.entropy_weight:
            loss = loss - self._settings.entropy_weight * self._entropy(output)
        return loss

    def differentiate(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Leave the gradient of `loss` in `.grad` of every parameter, which held none.

        For the Gaussian log-likelihood the loss's own derivative is written out: by automatic differentiation it takes
        a quarter of a step of these small networks. With r = (output - y) / std: dL/doutput = r / (n std) and
        dL/dlog_std = 1 - mean(r^2), minus the entropy's weight.
        """
        if self.log_std is None or self._settings.loss != "nll":
            self.loss(x, y).backward()
            return
        output = self._head(x)
        with torch.no_grad():
            precision = torch.exp(-self.log_std)
            residual = (output - y) * precision
            self.log_std.grad = (1 - self._settings.entropy_weight) - residual.square().mean(dim=0)
            gradient = residual * precision / len(y)
        output.backward(gradient)

    @torch.no_grad()
    def curves(self, train: _Samples, validation: _Samples) -> dict[str, float]:
        """The points of an epoch; every loss is over the whole of its set, with the weights as they are now."""

        def mean_loss(samples: _Samples) -> float:
            return sum(float(self.loss(x, y)) * len(y) for x, y in samples.batches()) / len(samples.rows)

        def norm(tensors: Iterable[torch.Tensor | None]) -> float:
            return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors if tensor is not None))

        output = torch.cat([self._head(x) for x, _ in validation.batches()])
        labels = validation.y.to(output.device)
        metrics = {
            "bc/train_loss": mean_loss(train),
            "bc/val_loss": mean_loss(validation),
            "bc/neglogp": float(self._negative_log_likelihood(output, labels)),
            "bc/entropy": float(self._entropy(output)),
            "bc/weight_norm": norm(self.parameters()),
            "bc/grad_norm": norm(parameter.grad for parameter in self.parameters()),
        }
        if self.log_std is None:
            chosen = torch.stack([part.argmax(dim=1) for part in self._logits(output)], dim=1)
            return {**metrics, "bc/accuracy": float((chosen == labels).all(dim=1).float().mean())}
        error, std = (output - labels).abs() * self._scale, self.log_std.exp() * self._scale
        return {**metrics, "bc/mean_absolute_error": float(error.mean()), "bc/std": float(std.mean())}

    def _logits(self, output: torch.Tensor) -> list[torch.Tensor]:
        """(n, choices) for every component of an action; a switch chooses between logit 0 and its own."""
        if self._binary:
            return [torch.stack([torch.zeros_like(one), one], dim=1) for one in output.unbind(dim=1)]
        return list(output.split(self._choices, dim=1)) if self._choices else [output]

    def _negative_log_likelihood(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.log_std is None:
            parts = zip(self._logits(output), y.unbind(dim=1), strict=True)
            return _sum(functional.cross_entropy(part, label) for part, label in parts)
        residual = (y - output) * torch.exp(-self.log_std)
        constant = 0.5 * math.log(2 * math.pi) * y.shape[1]
        return 0.5 * residual.square().sum() / len(y) + self.log_std.sum() + constant + self._stretch

    def _entropy(self, output: torch.Tensor) -> torch.Tensor:
        """Mean entropy in nats."""
        if self.log_std is not None:
            return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum() + self._stretch
        kinds = (torch.distributions.Categorical(logits=part, validate_args=False) for part in self._logits(output))
        return _sum(kind.entropy().mean() for kind in kinds)


def _sum(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum; of one term that term itself."""
    return functools.reduce(torch.add, terms)


def train_critic(
    policy: ActorCriticPolicy,
    trajectories: Trajectories,
    train_episodes: np.ndarray,
    held_out_episodes: np.ndarray,
    settings: Cloning,
    seed: int,
    on_point: OnPoint = lambda _: None,
) -> tuple[EpochPoint, ...]:
    """Regress the critic on discounted returns; it is trained on standardised returns and rescaled at the end.

    It ends as it was after the epoch with the least held-out loss: returns with rare failures are soon learnt by heart.

    A timeout is no end: the return of a truncated episode continues with the critic's own value of its last
    observation, renewed before every epoch (fitted value iteration), and with 0 after a termination. A last step of
    which nobody recorded what followed is none of the critic's (`Trajectories.followed`); without rewards it learns
    nothing, and there are no points.
    """
    trajectories = trajectories.followed()
    if not settings.critic_epochs or REWARDS in trajectories.missing:
        return ()
    inputs = _Inputs(policy, policy.vf_features_extractor, trajectories)
    head = nn.Sequential(*policy.mlp_extractor.value_net, policy.value_net)
    critic = nn.ModuleList([policy.vf_features_extractor, head])
    bare = replace(trajectories, observations=np.empty((trajectories.steps + len(trajectories), 0)))

    def part(episodes: np.ndarray) -> tuple[Trajectories, torch.Tensor, torch.Tensor]:
        """Rewards and ends; rows of the observations before every step, and after the last step of every episode."""
        before = trajectories.step_rows[_steps(trajectories, episodes)]
        after_last = trajectories.observation_offsets[1:][episodes] - 1
        return bare.select(episodes), torch.as_tensor(before), torch.as_tensor(after_last)

    @torch.no_grad()
    def values(rows: torch.Tensor) -> np.ndarray:
        """(n,) float64 in the unit of the return."""
        predicted = torch.cat([head(x) for x in inputs.features(rows)]).flatten()
        return mean + spread * predicted.cpu().numpy().astype(np.float64)

    def diverged(epoch: int) -> Diverged:
        critic.load_state_dict(untrained)
        return Diverged(
            f"the critic of seed {seed} diverged in epoch {epoch}: its loss is not finite; lower "
            f"cloning.critic_learning_rate (now {settings.critic_learning_rate:g})"
        )

    train, rows, last = part(train_episodes)
    held_out, held_out_rows, held_out_last = part(held_out_episodes)
    plain = train.discounted_returns(settings.gamma)
    mean, spread = float(plain.mean()), float(plain.std()) or 1.0
    optimizer = torch.optim.Adam(critic.parameters(), settings.critic_learning_rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    untrained = copy.deepcopy(critic.state_dict())
    points: list[EpochPoint] = []
    best_loss, best = math.inf, untrained
    for epoch in range(1, settings.critic_epochs + 1):
        final = values(last) if epoch > 1 else np.full(len(train), mean)
        standardised = (train.discounted_returns(settings.gamma, final) - mean) / spread
        samples = _Samples(inputs, rows, torch.as_tensor(standardised, dtype=torch.float32))
        losses = []
        for x, y in samples.batches(settings.batch_size, torch.randperm(len(rows), generator=generator)):
            loss = functional.mse_loss(head(x).flatten(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        returns = held_out.discounted_returns(settings.gamma, values(held_out_last))
        error, variance = returns - values(held_out_rows), float(returns.var())
        metrics = {
            "critic/train_loss": float(torch.stack(losses).mean()) * spread**2,
            "critic/val_loss": float(np.square(error).mean()),
            "critic/explained_variance": 1 - float(error.var()) / variance if variance > 0 else math.nan,
        }
        if not math.isfinite(metrics["critic/train_loss"] + metrics["critic/val_loss"]):
            raise diverged(epoch)
        points.append(EpochPoint(epoch, metrics))
        on_point(points[-1])
        if metrics["critic/val_loss"] < best_loss:
            best_loss, best = metrics["critic/val_loss"], copy.deepcopy(critic.state_dict())
    critic.load_state_dict(best)
    with torch.no_grad():  # mean and spread go into the last layer, so that the policy itself predicts returns
        policy.value_net.weight.mul_(spread)
        policy.value_net.bias.mul_(spread).add_(mean)
    if not_finite(critic) is not None:
        raise diverged(settings.critic_epochs)
    return tuple(points)
