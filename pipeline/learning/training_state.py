"""The complete state of a PPO training at a boundary between rollouts: taken, and put back.

At a boundary the episodes of all slots start anew and every generator is seeded from (seed, number of the boundary), in
a training that runs on as in one that comes back, so neither environments nor generators hold any state there. A
training runs on from its own checkpoint, through the very code that brings back a killed one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from pipeline.learning.callbacks import EvaluationCallback
from pipeline.learning.checkpoints import Checkpoint
from pipeline.learning.warm_start import WarmPPO
from pipeline.policies import load_tensors, tensors_of
from pipeline.policies.transfer import Transfer

POLICY, BEST, EVALUATIONS = "policy/", "best/", "evaluations/"
OPTIMIZER, CRITIC_OPTIMIZER = "optimizer/", "critic_optimizer/"


class BoundaryReached(Exception):
    """Ends SB3's `learn` where a checkpoint is due."""


class BoundaryCallback(BaseCallback):
    """Raises `BoundaryReached` before the first rollout at or after every multiple of `every_steps`; 0: never."""

    def __init__(self, every_steps: int) -> None:
        super().__init__()
        self._every = every_steps

    def _on_training_start(self) -> None:
        self._next = (self.model.num_timesteps // self._every + 1) * self._every if self._every else None

    def _on_rollout_start(self) -> None:
        if self._next is not None and self.model.num_timesteps >= self._next:
            raise BoundaryReached

    def _on_step(self) -> bool:
        return True


@dataclass(frozen=True)
class Origin:
    """What was known before the first step, and holds for the whole training."""

    weights: str  # weights_digest of what it started from
    proof: Transfer | None
    repeats: bool | None  # do its episodes come out the same when played again; None: not asked, there is no boundary

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Origin":
        data = checkpoint.state["origin"]
        proof = data["proof"]
        return cls(data["weights"], None if proof is None else Transfer(**proof), data["repeats"])


def capture(
    number: int, ended: bool, model: WarmPPO, evaluation: EvaluationCallback, origin: Origin, said: Mapping[str, Any]
) -> Checkpoint:
    """The checkpoint of a training at a boundary, or at its end; `said` is its emitter's state."""
    tensors = {f"{POLICY}{name}": tensor for name, tensor in tensors_of(model.policy).items()}
    tensors |= {f"{BEST}{name}": tensor for name, tensor in evaluation.best_tensors.items()}
    groups = {OPTIMIZER: _pack(model.policy.optimizer, OPTIMIZER, tensors)}
    if model.critic_optimizer is not None:
        groups[CRITIC_OPTIMIZER] = _pack(model.critic_optimizer, CRITIC_OPTIMIZER, tensors)
    tensors |= {f"{EVALUATIONS}{name}": torch.from_numpy(np.array(a)) for name, a in evaluation.arrays().items()}
    state = {
        "ended": ended,
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "optimizers": groups,
        "episode_infos": list(model.ep_info_buffer or ()),
        "episode_successes": list(model.ep_success_buffer or ()),
        "reward_spread": _reward_spread(model.get_env()),
        "evaluation": evaluation.state(),
        "unlogged": {
            name: [value, list(model.logger.name_to_excluded[name] or ())]
            for name, value in model.logger.name_to_value.items()
        },
        "origin": asdict(origin),
        "said": said,
    }
    # through bytes, so that a training runs on from exactly what a later process would read
    return Checkpoint.from_bytes(Checkpoint(number, tensors, state).to_bytes(""), "")


def restore(checkpoint: Checkpoint, model: WarmPPO) -> None:
    """Put a checkpoint into a model that was just made for the same training. Its logger must be set."""
    state, tensors = checkpoint.state, checkpoint.tensors
    load_tensors(model.policy, _below(POLICY, tensors))
    _unpack(model.policy.optimizer, OPTIMIZER, tensors, state["optimizers"])
    if CRITIC_OPTIMIZER not in state["optimizers"]:
        model.critic_optimizer = None
    elif model.critic_optimizer is not None:
        _unpack(model.critic_optimizer, CRITIC_OPTIMIZER, tensors, state["optimizers"])
    model.num_timesteps = state["num_timesteps"]
    model._n_updates = state["n_updates"]
    model.seconds_before = state["said"]["elapsed"]
    model.ep_info_buffer = model.new_statistics(state["episode_infos"])
    model.ep_success_buffer = model.new_statistics(state["episode_successes"])
    env = model.get_env()
    if isinstance(env, VecNormalize):
        mean, var, count = state["reward_spread"]
        env.ret_rms.mean, env.ret_rms.var, env.ret_rms.count = np.array(mean), np.array(var), count
    for name, (value, excluded) in state["unlogged"].items():
        model.logger.record(name, value, tuple(excluded))


def restore_evaluation(checkpoint: Checkpoint, evaluation: EvaluationCallback) -> None:
    """Put the evaluations so far and the best policy back."""
    arrays = {name: tensor.numpy() for name, tensor in _below(EVALUATIONS, checkpoint.tensors).items()}
    evaluation.restore(checkpoint.state["evaluation"], arrays, _below(BEST, checkpoint.tensors))


def last_policy(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors of the policy in training."""
    return _below(POLICY, checkpoint.tensors)


def _reward_spread(env: Any) -> list[float] | None:
    if not isinstance(env, VecNormalize):
        return None
    return [float(env.ret_rms.mean), float(env.ret_rms.var), float(env.ret_rms.count)]


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _pack(optimizer: torch.optim.Optimizer, prefix: str, tensors: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Add the optimiser's tensors to `tensors`; returns its settings."""
    packed = optimizer.state_dict()
    for index, moments in packed["state"].items():
        tensors.update({f"{prefix}{index}/{name}": value.detach().clone() for name, value in moments.items()})
    return list(packed["param_groups"])


def _unpack(
    optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, torch.Tensor], groups: Mapping[str, Any]
) -> None:
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in _below(prefix, tensors).items():
        index, _, name = key.partition("/")
        moments.setdefault(int(index), {})[name] = tensor.clone()  # the optimiser writes into what it is given
    optimizer.load_state_dict({"state": moments, "param_groups": groups[prefix]})
