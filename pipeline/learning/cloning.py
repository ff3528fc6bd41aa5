"""Behavioural cloning: the actor on the demonstrator's clean actions, then the critic on discounted returns.

    result = clone(policy, trajectories, settings, seed=1, evaluate=lambda policy: run_episodes(...))

A plain loop over tensors that are loaded once, through the actor alone; pictures stay bytes until a batch is read. The
policy is changed in place and ends as the best one seen. Where the data comes from, whether it may be used, and what
is logged is decided elsewhere.

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

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import nn
from torch.nn import functional

from pipeline.config.training import Cloning
from pipeline.data import Trajectories
from pipeline.data.observations import from_rows, row_dtype
from pipeline.errors import BadInput, shortened
from pipeline.learning.divergence import Diverged, not_finite
from pipeline.play.evaluation import EpisodeRecords, point_figures
from pipeline.policies import load_tensors, tensors_of

MIN_LOG_STD = -5.0  # a demonstrator that is copied exactly would drive the spread to 0 and the loss to minus infinity
_CHUNK = 16_384  # rows of one forward pass without gradient
_PICTURES = 256  # the same through a convolutional network, whose activations are large


@dataclass(frozen=True)
class EpochPoint:
    """After an epoch; epoch 0 is the untrained policy."""

    epoch: int
    metrics: Mapping[str, float]  # bc/..., and eval/... never: records hold the rollouts
    records: EpisodeRecords | None  # rollouts of the deterministic policy, on evaluated epochs


@dataclass(frozen=True)
class CriticPoint:
    """After an epoch of the critic."""

    epoch: int
    metrics: Mapping[str, float]  # critic/train_loss, critic/val_loss, critic/explained_variance


@dataclass(frozen=True)
class CloningResult:
    """What cloning came to; the policy it was given holds the best actor and the trained critic."""

    epochs: tuple[EpochPoint, ...]
    critic_epochs: tuple[CriticPoint, ...]
    best_epoch: int
    train_episodes: np.ndarray  # (N_train,) int64 indices of the trajectories
    held_out_episodes: np.ndarray  # (N_val,) int64
    critic_explained_variance: float  # of held-out returns, by the critic that was kept; NaN when none was trained
    samples_per_second: float  # of the actor's gradient steps; NaN where that was not measured
    wall_seconds: float
    environment_steps: int = 0  # played to learn from, evaluations apart


Evaluate = Callable[[ActorCriticPolicy], EpisodeRecords]
OnPoint = Callable[[EpochPoint | CriticPoint], None]


def clone(
    policy: ActorCriticPolicy,
    trajectories: Trajectories,
    settings: Cloning,
    seed: int,
    evaluate: Evaluate | None = None,
    on_point: OnPoint = lambda _: None,
) -> CloningResult:
    """Train actor and critic of `policy` in place on the demonstrations; the same arguments give the same bits.

    `evaluate` plays the policy on the first point, every `evaluate_every_epochs` and after the last epoch;
    its figures are ranked by success rate, then mean return.
    Raises BadInput when the demonstrations do not fit the policy or there are too few to hold any out; Diverged, the
    policy being the best one seen, when a loss is no number any more.
    """
    started = time.perf_counter()
    check_demonstrations(policy, trajectories)
    if settings.select == "rollout" and evaluate is None:
        raise BadInput("cloning.select = 'rollout' needs rollout evaluations; use 'validation_loss' without them")
    train_rows, held_out_rows = split_by_episode(episode_returns(trajectories), settings.validation_fraction, seed)
    data = _ActorData.of(policy, trajectories, train_rows, held_out_rows)
    epochs, best_epoch, rate = _clone_actor(policy, data, settings, seed, evaluate, on_point)
    critic_epochs: tuple[CriticPoint, ...] = ()
    if settings.critic_epochs:
        critic_epochs = train_critic(policy, trajectories, train_rows, held_out_rows, settings, seed, on_point)
    kept = min(critic_epochs, key=lambda point: point.metrics["critic/val_loss"], default=None)
    explained = kept.metrics["critic/explained_variance"] if kept else math.nan
    return CloningResult(
        epochs=epochs,
        critic_epochs=critic_epochs,
        best_epoch=best_epoch,
        train_episodes=train_rows,
        held_out_episodes=held_out_rows,
        critic_explained_variance=explained,
        samples_per_second=rate,
        wall_seconds=time.perf_counter() - started,
    )


def check_demonstrations(policy: ActorCriticPolicy, trajectories: Trajectories) -> None:
    """Raise BadInput unless observations and actions have the shapes of the policy's spaces."""
    for what, space, array in (
        ("observations", policy.observation_space, trajectories.observations),
        ("actions", policy.action_space, trajectories.actions),
    ):
        needed = row_dtype(space)
        if array.shape[1:] != needed.shape or array.dtype.names != needed.base.names:
            given = f"{shortened(array.dtype.names)} of " if array.dtype.names else ""
            raise BadInput(f"demonstrations: {what} have shape {given}{array.shape[1:]}, the policy needs {space}")


def episode_returns(trajectories: Trajectories) -> np.ndarray:
    """(N,) float64: the sum of the rewards of every episode."""
    return np.add.reduceat(trajectories.rewards.astype(np.float64), trajectories.step_offsets[:-1])


def split_by_episode(returns: np.ndarray, validation_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of training and held-out episodes: `round(fraction * N)` held out, at least one of each.

    Stratified by the episodes' `returns` (N,): one is drawn from the middle of every group of neighbours in return, so
    that rare failures are held out in proportion. Without it held-out returns may lack what the critic finds hardest.
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


# --- actor -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Inputs:
    """Observations as tensors, held once however many sets draw from them, and how a part of the policy reads them."""

    rows: Any  # (S + N, features) float32; for a convolutional extractor as recorded, one tensor or one a key
    read: Callable[[Any], torch.Tensor] | None  # that extractor, rows -> (n, features); None: it has been at work
    chunk: int  # rows of one forward pass without gradient

    @classmethod
    def of(cls, policy: ActorCriticPolicy, extractor: nn.Module, data: Trajectories) -> "_Inputs":
        """An extractor without weights reads once and for all; a convolutional one reads every batch anew."""

        def read(rows: Any) -> torch.Tensor:
            features: torch.Tensor = extractor(
                preprocess_obs(rows, policy.observation_space, normalize_images=policy.normalize_images)
            )
            return features

        stored = from_rows(data.observations)
        mapping = isinstance(stored, dict)
        rows = {k: torch.as_tensor(v) for k, v in stored.items()} if mapping else torch.as_tensor(stored)
        if any(True for _ in extractor.parameters()):
            return cls(rows, read, _PICTURES)
        with torch.no_grad():
            return cls(read(rows).to(torch.float32), None, _CHUNK)

    def features(self, part: Any) -> torch.Tensor:
        """What the rest of the network reads of a part, (n, features)."""
        features: torch.Tensor = part if self.read is None else self.read(part)
        return features

    def parts(self, rows: torch.Tensor, size: int) -> Iterator[Any]:
        """The given rows (n,) int64, `size` of them at a time."""
        if self.read is None:
            yield from self.rows[rows].split(size)  # small: all at once is faster
            return
        for few in rows.split(size):
            yield {k: v[few] for k, v in self.rows.items()} if isinstance(self.rows, dict) else self.rows[few]


@dataclass(frozen=True)
class _Samples:
    """Rows of the inputs, and what is to be learnt for each."""

    inputs: _Inputs
    rows: torch.Tensor  # (n,) int64
    y: torch.Tensor  # (n, dims) float32 or int64 labels; (n,) float32 returns

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int, order: torch.Tensor | None = None) -> Iterator[tuple[Any, torch.Tensor]]:
        """(inputs, targets) of at most `size` samples each; a last incomplete batch is given as it is."""
        rows, y = (self.rows, self.y) if order is None else (self.rows[order], self.y[order])
        yield from zip(self.inputs.parts(rows, size), y.split(size), strict=True)

    def chunks(self) -> Iterator[tuple[Any, torch.Tensor]]:
        """All samples in order, in parts that fit into memory."""
        return self.batches(self.inputs.chunk)


@dataclass(frozen=True)
class _ActorData:
    """Observations and the demonstrator's labels."""

    train: _Samples
    val: _Samples

    @classmethod
    def of(cls, policy: ActorCriticPolicy, data: Trajectories, train: np.ndarray, held_out: np.ndarray) -> "_ActorData":
        inputs, labels = _Inputs.of(policy, policy.pi_features_extractor, data), _labels(policy, data)

        def samples(episodes: np.ndarray) -> _Samples:
            steps = _steps(data, episodes)
            return _Samples(inputs, torch.as_tensor(data.step_rows[steps]), labels[torch.as_tensor(steps)])

        return cls(samples(train), samples(held_out))


def _steps(data: Trajectories, episodes: np.ndarray) -> np.ndarray:
    """(n,) int64: the steps of some episodes."""
    chosen = np.zeros(len(data), bool)
    chosen[episodes] = True
    return np.flatnonzero(np.repeat(chosen, data.lengths))


def _labels(policy: ActorCriticPolicy, data: Trajectories) -> torch.Tensor:
    space = policy.action_space
    if isinstance(space, spaces.Box):
        labels = np.clip(data.actions, space.low, space.high).reshape(data.steps, -1)
        return torch.as_tensor(labels, dtype=torch.float32)
    return torch.as_tensor(data.actions.reshape(data.steps, -1), dtype=torch.int64)


class _Actor:
    """The actor's part of a policy as one function from inputs to loss."""

    def __init__(
        self, policy: ActorCriticPolicy, settings: Cloning, features: Callable[[Any], torch.Tensor] = lambda part: part
    ) -> None:
        self._head = nn.Sequential(*policy.mlp_extractor.policy_net, policy.action_net)
        self._features, self._extractor = features, policy.pi_features_extractor
        self.log_std: nn.Parameter | None = getattr(policy, "log_std", None)
        space = policy.action_space
        self._choices = space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else []
        self._binary = isinstance(space, spaces.MultiBinary)
        self._settings = settings

    def parameters(self) -> list[nn.Parameter]:
        spread = [self.log_std] if self.log_std is not None else []
        return [*self._extractor.parameters(), *self._head.parameters(), *spread]

    def body(self, x: Any) -> torch.Tensor:
        """Inputs of n rows -> (n, outputs): the mean of a Gaussian, or logits."""
        output: torch.Tensor = self._head(self._features(x))
        return output

    def loss(self, x: Any, y: torch.Tensor) -> torch.Tensor:
        """Mean over the batch of the negative log-likelihood (or squared error), minus the weighted entropy."""
        output = self.body(x)
        if self._settings.loss == "nll":
            loss = self.negative_log_likelihood(output, y)
        elif self.log_std is not None:
            loss = functional.mse_loss(output, y)
        else:
            loss = _sum(
                functional.mse_loss(part.softmax(dim=1), functional.one_hot(label, part.shape[1]).float())
                for part, label in zip(self.logits(output), y.unbind(dim=1), strict=True)
            )
        if self._settings.entropy_weight:
            loss = loss - self._settings.entropy_weight * self.entropy(output)
        return loss

    def logits(self, output: torch.Tensor) -> list[torch.Tensor]:
        """(n, choices) for every component of an action; a switch chooses between logit 0 and its own."""
        if self._binary:
            return [torch.stack([torch.zeros_like(one), one], dim=1) for one in output.unbind(dim=1)]
        return list(output.split(self._choices, dim=1)) if self._choices else [output]

    def negative_log_likelihood(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.log_std is None:
            parts = zip(self.logits(output), y.unbind(dim=1), strict=True)
            return _sum(functional.cross_entropy(part, label) for part, label in parts)
        residual = (y - output) * torch.exp(-self.log_std)
        constant = 0.5 * math.log(2 * math.pi) * y.shape[1]
        return 0.5 * residual.square().sum() / len(y) + self.log_std.sum() + constant

    def entropy(self, output: torch.Tensor) -> torch.Tensor:
        """Mean entropy in nats."""
        if self.log_std is None:
            parts = self.logits(output)
            kinds = (torch.distributions.Categorical(logits=part, validate_args=False) for part in parts)
            return _sum(kind.entropy().mean() for kind in kinds)
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()

    def differentiate(self, x: Any, y: torch.Tensor) -> None:
        """Leave the gradient of `loss` in `.grad` of every parameter, which held none.

        For the Gaussian log-likelihood the loss's own derivative is written out: by automatic differentiation it takes
        a quarter of a step of these small networks. With r = (output - y) / std: dL/doutput = r / (n std) and
        dL/dlog_std = 1 - mean(r^2), minus the entropy's weight.
        """
        if self.log_std is None or self._settings.loss != "nll":
            self.loss(x, y).backward()
            return
        output = self.body(x)
        with torch.no_grad():
            precision = torch.exp(-self.log_std)
            residual = (output - y) * precision
            self.log_std.grad = (1 - self._settings.entropy_weight) - residual.square().mean(dim=0)
            gradient = residual * precision / len(y)
        output.backward(gradient)

    def norm(self, gradient: bool) -> float:
        """Euclidean norm of all the actor's weights, or of their last gradients."""
        tensors = [p.grad if gradient else p.detach() for p in self.parameters()]
        return math.sqrt(sum(float(t.square().sum()) for t in tensors if t is not None))


def _clone_actor(
    policy: ActorCriticPolicy,
    data: _ActorData,
    settings: Cloning,
    seed: int,
    evaluate: Evaluate | None,
    on_point: OnPoint,
) -> tuple[tuple[EpochPoint, ...], int, float]:
    """Every point, the epoch whose weights the policy ends with, and samples per second."""
    actor = _Actor(policy, settings, data.train.inputs.features)
    optimizer = torch.optim.Adam(
        actor.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    points: list[EpochPoint] = []
    best: tuple[Any, int, dict[str, torch.Tensor]] | None = None
    seconds = 0.0
    for epoch in range(settings.epochs + 1):
        started = time.perf_counter()
        if epoch > 0:
            _one_epoch(actor, optimizer, data, settings.batch_size, generator)
        seconds += time.perf_counter() - started if epoch > 0 else 0.0
        metrics = _actor_metrics(actor, data)
        weights, losses = not_finite(policy), metrics["bc/train_loss"] + metrics["bc/val_loss"]
        if weights is not None or not math.isfinite(losses):
            if best is not None:
                load_tensors(policy, best[2])
            raise Diverged(
                f"cloning of seed {seed} diverged in epoch {epoch}: {weights or 'its loss'} is not finite; lower "
                f"cloning.learning_rate (now {settings.learning_rate:g})"
            )
        due = epoch % settings.evaluate_every_epochs == 0 or epoch == settings.epochs
        records = evaluate(policy) if evaluate is not None and due else None
        point = EpochPoint(epoch, metrics, records)
        points.append(point)
        on_point(point)
        value = _selection_value(point, settings)
        if value is not None and (best is None or value > best[0]):
            best = (value, epoch, tensors_of(policy))
    assert best is not None
    load_tensors(policy, best[2])
    samples = settings.epochs * len(data.train)
    return tuple(points), best[1], samples / seconds if seconds else 0.0


def _one_epoch(
    actor: _Actor,
    optimizer: torch.optim.Optimizer,
    data: _ActorData,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """One pass over the training samples in a fresh random order."""
    order = torch.randperm(len(data.train), generator=generator)
    for batch_x, batch_y in data.train.batches(batch_size, order):
        optimizer.zero_grad()
        actor.differentiate(batch_x, batch_y)
        optimizer.step()
    if actor.log_std is not None:
        with torch.no_grad():
            actor.log_std.clamp_(min=MIN_LOG_STD)


def _selection_value(point: EpochPoint, settings: Cloning) -> Any | None:
    """What ranks this point, larger is better; None when it was not evaluated."""
    if settings.select == "validation_loss":
        return -point.metrics["bc/val_loss"]
    return None if point.records is None else rank(point_figures(point.records))


def rank(figures: Mapping[str, float]) -> tuple[float, float]:
    """What clones are ranked by, larger is better: success rate, then mean return."""
    return figures["success_rate"], figures["return_mean"]


@torch.no_grad()
def _actor_metrics(actor: _Actor, data: _ActorData) -> dict[str, float]:
    """The curves of an epoch; every loss is computed over the whole of its set with the weights as they are now."""
    output = torch.cat([actor.body(x) for x, _ in data.val.chunks()])
    metrics = {
        "bc/train_loss": _mean_loss(actor, data.train),
        "bc/val_loss": _mean_loss(actor, data.val),
        "bc/neglogp": float(actor.negative_log_likelihood(output, data.val.y)),
        "bc/entropy": float(actor.entropy(output)),
        "bc/weight_norm": actor.norm(gradient=False),
        "bc/grad_norm": actor.norm(gradient=True),
    }
    if actor.log_std is None:
        chosen = torch.stack([part.argmax(dim=1) for part in actor.logits(output)], dim=1)
        metrics["bc/accuracy"] = float((chosen == data.val.y).all(dim=1).float().mean())
    else:
        metrics["bc/mean_absolute_error"] = float((output - data.val.y).abs().mean())
        metrics["bc/std"] = float(actor.log_std.exp().mean())
    return metrics


def _sum(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum; of one term that term itself."""
    return functools.reduce(torch.add, terms)


def _mean_loss(actor: _Actor, samples: _Samples) -> float:
    return sum(float(actor.loss(x, y)) * len(y) for x, y in samples.chunks()) / len(samples)


# --- critic ----------------------------------------------------------------------------------------------------------


def train_critic(
    policy: ActorCriticPolicy,
    trajectories: Trajectories,
    train_rows: np.ndarray,
    held_out_rows: np.ndarray,
    settings: Cloning,
    seed: int,
    on_point: OnPoint = lambda _: None,
) -> tuple[CriticPoint, ...]:
    """Regress the critic on discounted returns; it is trained on standardised returns and rescaled at the end.

    It ends as it was after the epoch with the least held-out loss: returns with rare failures are soon learnt by heart.

    A timeout is no end: the return of a truncated episode continues with the critic's own value of its last
    observation, renewed before every epoch (fitted value iteration), and with 0 after a termination.
    """
    inputs = _Inputs.of(policy, policy.vf_features_extractor, trajectories)
    train, held_out = (_CriticData.of(trajectories, rows) for rows in (train_rows, held_out_rows))
    plain = train.data.discounted_returns(settings.gamma)
    mean, spread = float(plain.mean()), float(plain.std()) or 1.0
    critic = _Critic(policy, inputs, mean, spread)
    optimizer = torch.optim.Adam(critic.parts.parameters(), settings.critic_learning_rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    points: list[CriticPoint] = []
    best: tuple[float, dict[str, torch.Tensor]] = (math.inf, {})
    untrained = copy.deepcopy(critic.parts.state_dict())

    def diverged(epoch: int) -> Diverged:
        critic.parts.load_state_dict(untrained)
        return Diverged(
            f"the critic of seed {seed} diverged in epoch {epoch}: its loss is not finite; lower "
            f"cloning.critic_learning_rate (now {settings.critic_learning_rate:g})"
        )

    for epoch in range(1, settings.critic_epochs + 1):
        final = critic.values(train.last) if epoch > 1 else np.full(len(train.data), mean)
        targets = torch.as_tensor(
            (train.data.discounted_returns(settings.gamma, final) - mean) / spread, dtype=torch.float32
        )
        order = torch.randperm(len(train.rows), generator=generator)
        losses = []
        for x, y in _Samples(inputs, train.rows, targets).batches(settings.batch_size, order):
            loss = functional.mse_loss(critic.body(x).flatten(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        metrics = _critic_metrics(critic, held_out, settings.gamma, losses)
        if not math.isfinite(metrics["critic/train_loss"] + metrics["critic/val_loss"]):
            raise diverged(epoch)
        points.append(CriticPoint(epoch, metrics))
        on_point(points[-1])
        if points[-1].metrics["critic/val_loss"] < best[0]:
            best = (points[-1].metrics["critic/val_loss"], copy.deepcopy(critic.parts.state_dict()))
    critic.parts.load_state_dict(best[1])
    critic.rescale()
    if not_finite(critic.parts) is not None:
        raise diverged(settings.critic_epochs)
    return tuple(points)


@dataclass(frozen=True)
class _CriticData:
    """Some episodes, and where their observations are among the inputs."""

    data: Trajectories  # without observations: rewards and ends are what returns are made of
    rows: torch.Tensor  # (n,) int64: the observation before every step
    last: torch.Tensor  # (episodes,) int64: the one after the last step of each

    @classmethod
    def of(cls, data: Trajectories, episodes: np.ndarray) -> "_CriticData":
        episodes = np.sort(episodes)  # the order of the rows
        rows = torch.as_tensor(data.step_rows[_steps(data, episodes)])
        last = torch.as_tensor(data.observation_offsets[1:][episodes] - 1)
        bare = replace(data, observations=np.empty((data.steps + len(data), 0)))
        return cls(bare.select(episodes), rows, last)


class _Critic:
    """The critic's part of a policy while it predicts `(return - mean) / spread`."""

    def __init__(self, policy: ActorCriticPolicy, inputs: _Inputs, mean: float, spread: float) -> None:
        self._head = nn.Sequential(*policy.mlp_extractor.value_net, policy.value_net)
        self.parts = nn.ModuleList([policy.vf_features_extractor, self._head])
        self._inputs, self.mean, self.spread = inputs, mean, spread

    def body(self, x: Any) -> torch.Tensor:
        """Inputs of n rows -> (n, 1)."""
        output: torch.Tensor = self._head(self._inputs.features(x))
        return output

    @torch.no_grad()
    def values(self, rows: torch.Tensor) -> np.ndarray:
        """(n,) float64 values in the unit of the return, of the inputs' `rows` (n,)."""
        parts = [self.body(part) for part in self._inputs.parts(rows, self._inputs.chunk)]
        return self.mean + self.spread * torch.cat(parts).flatten().numpy().astype(np.float64)

    @torch.no_grad()
    def rescale(self) -> None:
        """Move mean and spread into the last layer, so that the policy itself predicts returns."""
        last = self._head[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(self.spread)
        last.bias.mul_(self.spread).add_(self.mean)


def _critic_metrics(
    critic: _Critic, held_out: _CriticData, gamma: float, losses: list[torch.Tensor]
) -> dict[str, float]:
    returns = held_out.data.discounted_returns(gamma, critic.values(held_out.last))
    error = returns - critic.values(held_out.rows)
    variance = float(returns.var())
    return {
        "critic/train_loss": float(torch.stack(losses).mean()) * critic.spread**2,
        "critic/val_loss": float(np.square(error).mean()),
        "critic/explained_variance": 1 - float(error.var()) / variance if variance > 0 else math.nan,
    }
