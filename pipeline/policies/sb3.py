"""Policies of other people: SB3 `.zip` files read without executing anything, and written for `PPO.load`.

    policy = import_sb3_zip("theirs.zip", task.observation_space, task.action_space, task.wrappers)
    save_policy(policy, folder, {"source": ..., "sb3_version": ...})       # from here on it is one of ours

The network is rebuilt from the tensors and the settings of the zip; what these do not say for certain is refused by
name. A PPO, A2C or TRPO whose network is one that PPO trains here becomes such a policy, whose critic values rewards as
they are; any other actor becomes one that acts, passes the gate and demonstrates. Spaces are those of the task. The
optimiser is not carried over. What a policy of ours scales is written into its first and last layers, and a clone and
its correction become one actor twice as wide, so that `PPO.load` needs nothing of ours.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from pipeline.data.spaces import space_bounds
from pipeline.errors import BadInput, shortened
from pipeline.files import appearing
from pipeline.policies.artifact import Policy, build_frozen, load_tensors, refuse_hollow, refuse_misfit, tensors_of
from pipeline.policies.layers import FrozenNetwork
from pipeline.policies.networks import (
    ResidualPolicy,
    build_policy,
    network_of,
    policy_arguments,
    policy_class,
    scaling_of,
)
from pipeline.policies.sb3_actor import actor_of
from pipeline.policies.sb3_zip import SB3Zip, read_sb3_zip

REMEDY: Final = "; was it trained on this environment, and for its kind of actions?"
FURTHEST_OFFSET: Final = 1e4  # in units of the scale; beyond it float32 weights do not hold a scaling
OWN_WRAPPERS: Final = {"TimeFeatureWrapper": "pipeline.envs.time_feature:TimeFeature"}  # the Zoo's -> the same here


def import_sb3_zip(
    path: str | Path,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    wrappers: Sequence[Mapping[str, Any]] = (),
) -> Policy:
    """The policy in an SB3 `.zip`, rebuilt by our own code for these spaces; `wrappers`: those of the task.

    Raises BadInput, one line, for a hostile or damaged file, for one that belongs to another environment or lacks what
    stood in front of it, and for anything our policies cannot express.
    """
    held = read_sb3_zip(path)
    what = f"SB3 zip {held.name!r}"
    actor = actor_of(held)
    _refuse_other_surroundings(held, observation_space, action_space, wrappers, what)
    tensors = {name: torch.from_numpy(array) for name, array in actor.tensors.items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    policy: Policy
    if isinstance(actor.network, FrozenNetwork):
        policy = build_frozen(observation_space, action_space, actor.network, size, what)
    else:
        refuse_hollow(observation_space, actor.network, size, what)
        policy = build_policy(observation_space, action_space, actor.network, seed=0, scaling=actor.scaling)
        units = {name: tensor for name, tensor in tensors_of(policy).items() if "features_extractor." in name}
        tensors = {**units, **tensors}
    refuse_misfit(tensors, tensors_of(policy), what, REMEDY)
    load_tensors(policy, tensors)
    return policy


def _refuse_other_surroundings(
    held: SB3Zip,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    wrappers: Sequence[Mapping[str, Any]],
    what: str,
) -> None:
    """Raise BadInput unless everything that stood between the policy and its environment stands here too."""
    there = {str(wrapper["name"]) for wrapper in wrappers}
    for name in held.zoo.wrappers if held.zoo else ():
        own = OWN_WRAPPERS.get(name.rpartition(".")[2])
        if own not in there and not any(one.rpartition(":")[2] == name.rpartition(".")[2] for one in there):
            remedy = f"add {own}" if own else "add one of the same class name"
            raise BadInput(f"{what} was trained behind {name} (its config.yml); {remedy} to environment.wrappers")
    for kind, its, ours in (
        ("observations", held.observation_space, observation_space),
        ("actions", held.action_space, action_space),
    ):
        same = type(its) is type(ours) and _shapes(its) == _shapes(ours)
        if same and kind == "actions":
            same = all(np.array_equal(a, b) for a, b in zip(space_bounds(its), space_bounds(ours), strict=True))
        if not same:
            stacked = f" of {held.zoo.frame_stack} stacked frames" if held.zoo and held.zoo.frame_stack > 1 else ""
            raise BadInput(
                f"{what}: its {kind}{stacked} are {shortened(str(its))}, the task's are {shortened(str(ours))}{REMEDY}"
            )


def _shapes(space: gym.Space[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _shapes(part) for key, part in space.spaces.items()}
    return (space.shape, getattr(space, "n", None), str(getattr(space, "nvec", None)))


def export_sb3_zip(policy: ActorCriticPolicy, path: str | Path) -> None:
    """Write a policy as an SB3 `.zip` that `PPO.load(path)` reads, atomically. Raises BadInput when the file exists.

    The format itself holds pickles of SB3's own classes; whoever loads it trusts the file. Our pipeline never does.
    """
    target = Path(path)
    if target.suffix != ".zip" or target.exists():
        raise BadInput(f"export path {str(target)!r} must be a new file that ends in .zip")
    model = as_ppo(policy)
    with appearing(target) as written:
        model.save(written)
        with open(written, "rb") as stream:
            os.fsync(stream.fileno())


def as_ppo(policy: ActorCriticPolicy) -> PPO:
    """An SB3 PPO on the CPU with the weights of `policy` and SB3's own settings.

    It predicts at once; to train it further, give it an environment: `model.set_env(env)`.
    """
    arguments = policy_arguments(policy.observation_space, network_of(policy))
    if isinstance(policy, ResidualPolicy):
        arguments["net_arch"]["pi"] = [2 * width for width in network_of(policy).hidden]
    kind: Any = policy_class(policy.observation_space)
    model = PPO(kind, None, policy_kwargs=arguments, device="cpu", _init_setup_model=False)  # type: ignore[arg-type]
    # as PPO.load goes about it: the spaces are known without an environment
    model.observation_space, model.action_space, model.n_envs = policy.observation_space, policy.action_space, 1
    model._setup_model()
    load_tensors(model.policy, folded(policy, model.policy.state_dict()))
    return model


def folded(policy: ActorCriticPolicy, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """The tensors of these names of a policy that does the same in raw units and scales nothing, up to rounding.

    But for what a bound on its observations cuts: such a policy has none.

    With x' = (x - o) / s in front of a layer: W x' + b = (W / s) x + (b - (W / s) o); and a + t (W x + b) behind one is
    (t W) x + (a + t b). Raises BadInput where float32 cannot hold that: an offset of many scales.
    """
    tensors = {name: tensor.double() for name, tensor in tensors_of(policy).items()}
    scaling, hidden = scaling_of(policy), network_of(policy).hidden
    if isinstance(policy, ResidualPolicy):
        tensors |= _side_by_side(tensors, len(hidden))
    observed, acted = scaling.observations, scaling.actions
    if observed is not None:
        far = np.abs(observed.offset / observed.scale)
        if far.max() > FURTHEST_OFFSET:
            raise BadInput(
                f"export: number {far.argmax()} of the observation is scaled around {observed.offset[far.argmax()]:g} "
                f"by {observed.scale[far.argmax()]:g}, which the weights of an SB3 zip cannot hold; export the artifact"
            )
        offset, scale = (torch.tensor(figures, dtype=torch.float64) for figures in (observed.offset, observed.scale))
        for part, last in (("policy", "action_net"), ("value", "value_net")):
            first = f"mlp_extractor.{part}_net.0" if hidden else last
            tensors[f"{first}.weight"] = tensors[f"{first}.weight"] / scale
            tensors[f"{first}.bias"] = tensors[f"{first}.bias"] - tensors[f"{first}.weight"] @ offset
    if acted is not None:
        offset, scale = (torch.tensor(figures, dtype=torch.float64) for figures in (acted.offset, acted.scale))
        tensors["action_net.weight"] = scale[:, None] * tensors["action_net.weight"]
        tensors["action_net.bias"] = offset + scale * tensors["action_net.bias"]
        tensors["log_std"] = tensors["log_std"] + scale.log()
    return {name: tensors[name].float() for name in names}


def _side_by_side(tensors: Mapping[str, torch.Tensor], hidden: int) -> dict[str, torch.Tensor]:
    """The actor of a residual policy as one network: both parts read the same, stay apart, and are added at the end."""
    actor: dict[str, torch.Tensor] = {}
    for i in range(0, 2 * hidden, 2):  # an activation stands between two layers
        layers = [f"mlp_extractor.{net}.{i}" for net in ("clone_net", "policy_net")]
        weights = [tensors[f"{layer}.weight"] for layer in layers]
        actor[f"{layers[1]}.weight"] = torch.block_diag(*weights) if i else torch.cat(weights)
        actor[f"{layers[1]}.bias"] = torch.cat([tensors[f"{layer}.bias"] for layer in layers])
    last = [tensors[f"action_net.{part}.weight"] for part in ("clone", "correction")]
    actor["action_net.weight"] = torch.cat(last, dim=1) if hidden else last[0] + last[1]
    actor["action_net.bias"] = tensors["action_net.clone.bias"] + tensors["action_net.correction.bias"]
    return actor
