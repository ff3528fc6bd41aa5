"""Policies of other people: SB3 `.zip` files read without unpickling anything, and written for `PPO.load`.

    policy = import_sb3_zip("theirs.zip", task.observation_space, task.action_space)
    save_policy(policy, folder, {"source": ..., "sb3_version": ...})       # from here on it is one of ours

An SB3 zip holds `policy.pth`, tensors that torch reads with `weights_only`, and `data`, JSON in which whatever JSON
cannot say is a pickle with a readable description beside it. The pickles are never decoded. The network is rebuilt
from the shapes of the tensors, and the settings from the readable parts; what these do not say for certain is refused
by name. Spaces are those of the task. Not carried over: the optimiser, and a `VecNormalize` the policy was trained
behind, which is not in the zip; the gate evaluates what the policy does here. What a policy scales is written into its
first and last layers, so that `PPO.load` needs nothing of ours.
"""

import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import gymnasium as gym
import numpy as np
import torch
from pydantic import BaseModel, Field
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from pipeline.config.loading import validate
from pipeline.config.training import Network
from pipeline.errors import BadInput, shortened
from pipeline.files import DAMAGE
from pipeline.policies.artifact import load_tensors, refuse_hollow, refuse_misfit, tensors_of
from pipeline.policies.networks import build_policy, network_of, policy_arguments, policy_class, scaling_of

SB3_POLICIES: Final = "stable_baselines3.common.policies"
WEIGHTS: Final = "policy.pth"
SETTINGS: Final = "data"
MAX_ZIP_BYTES: Final = 1 << 30
MAX_WEIGHT_BYTES: Final = 1 << 29
MAX_SETTINGS_BYTES: Final = 32_000_000  # replay and episode buffers are written into it
MAX_MEMBERS: Final = 4096
REMEDY: Final = "; was it trained on this environment, and for its kind of actions?"
FURTHEST_OFFSET: Final = 1e4  # in units of the scale; beyond it float32 weights do not hold a scaling
_TANH: Final = "<class 'torch.nn.modules.activation.Tanh'>"
_RELU: Final = "<class 'torch.nn.modules.activation.ReLU'>"
_FLATTEN: Final = "<class 'stable_baselines3.common.torch_layers.FlattenExtractor'>"
_READS: Final = {
    "MultiInput": ", which reads Dict observations",
    "ActorCriticCnn": ", which reads pictures",
    "Cnn": ", which reads pictures",
}
_LAYER = re.compile(r"mlp_extractor\.(policy|value)_net\.(\d{1,3})\.weight")


class _PolicyArguments(BaseModel, extra="forbid"):
    """`policy_kwargs` that our policies have as well; what matters to training alone, or is read off the tensors."""

    activation_fn: Literal[_TANH, _RELU] = _TANH  # type: ignore[valid-type]
    features_extractor_class: Literal[_FLATTEN] = _FLATTEN  # type: ignore[valid-type]
    features_extractor_kwargs: Annotated[dict[str, Any], Field(max_length=0)] | Literal["{}"] | None = None
    share_features_extractor: Literal[True] = True
    use_sde: Literal[False] = False
    squash_output: Literal[False] = False
    use_expln: Literal[False] = False
    net_arch: Any = None
    ortho_init: Any = None
    log_std_init: Any = None
    optimizer_class: Any = None
    optimizer_kwargs: Any = None
    normalize_images: Any = None


class _Settings(BaseModel):
    use_sde: Literal[False]
    policy_kwargs: _PolicyArguments


def import_sb3_zip(path: str | Path, observation_space: gym.Space, action_space: gym.Space) -> ActorCriticPolicy:
    """The policy in an SB3 `.zip`, rebuilt by our own code for these spaces.

    Raises BadInput, one line, for a hostile or damaged file and for anything our policies cannot express: other
    algorithms, feature extractors, shared layers, different actor and critic, gSDE, squashing, unknown activations.
    """
    file = Path(path)
    what = f"SB3 zip {file.name!r}"
    settings, weights = _read_zip(file, what)
    tensors = _tensors(weights, what)
    network = Network(activation=_activation(settings, what), hidden=_hidden(tensors, what))
    refuse_hollow(observation_space, network, sum(tensor.nbytes for tensor in tensors.values()), what)
    policy = build_policy(observation_space, action_space, network, seed=0)
    refuse_misfit(tensors, tensors_of(policy), what, REMEDY)
    load_tensors(policy, tensors)
    return policy


def export_sb3_zip(policy: ActorCriticPolicy, path: str | Path) -> None:
    """Write a policy as an SB3 `.zip` that `PPO.load(path)` reads, atomically. Raises BadInput when the file exists.

    The format itself holds pickles of SB3's own classes; whoever loads it trusts the file. Our pipeline never does.
    """
    target = Path(path)
    if target.suffix != ".zip" or target.exists():
        raise BadInput(f"export path {str(target)!r} must be a new file that ends in .zip")
    model = as_ppo(policy)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".exporting-") as folder:
        written = Path(folder) / "policy.zip"
        model.save(written)
        with open(written, "rb") as stream:
            os.fsync(stream.fileno())
        os.rename(written, target)


def as_ppo(policy: ActorCriticPolicy) -> PPO:
    """An SB3 PPO on the CPU with the weights of `policy` and SB3's own settings.

    It predicts at once; to train it further, give it an environment: `model.set_env(env)`.
    """
    arguments = policy_arguments(policy.observation_space, network_of(policy))
    kind: Any = policy_class(policy.observation_space)
    model = PPO(kind, None, policy_kwargs=arguments, device="cpu", _init_setup_model=False)  # type: ignore[arg-type]
    # as PPO.load goes about it: the spaces are known without an environment
    model.observation_space, model.action_space, model.n_envs = policy.observation_space, policy.action_space, 1
    model._setup_model()
    load_tensors(model.policy, folded(policy, model.policy.state_dict()))
    return model


def folded(policy: ActorCriticPolicy, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """The tensors of these names of a policy that does the same in raw units and scales nothing, up to rounding.

    With x' = (x - o) / s in front of a layer: W x' + b = (W / s) x + (b - (W / s) o); and a + t (W x + b) behind one is
    (t W) x + (a + t b). Raises BadInput where float32 cannot hold that: an offset of many scales.
    """
    tensors = {name: tensor.double() for name, tensor in tensors_of(policy).items()}
    scaling, hidden = scaling_of(policy), network_of(policy).hidden
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


# --------------------------------------------------------------------------------------------------------------- bytes


def _read_zip(path: Path, what: str) -> tuple[dict[str, Any], bytes]:
    """The JSON of `data` and the bytes of `policy.pth`, within bounds."""
    contents = []
    try:
        size = path.stat().st_size
        if not path.is_file() or size > MAX_ZIP_BYTES:
            raise BadInput(f"{what} has {size} bytes, allowed is a file of at most {MAX_ZIP_BYTES}")
        with zipfile.ZipFile(path) as archive:
            for name, limit in ((SETTINGS, MAX_SETTINGS_BYTES), (WEIGHTS, MAX_WEIGHT_BYTES)):
                found = [member for member in archive.infolist() if member.filename == name]
                if len(found) != 1:
                    raise BadInput(f"{what} holds {len(found)} members {name!r}, expected one; was it saved by SB3?")
                if found[0].file_size > limit:
                    raise BadInput(f"{what}: {name} claims {found[0].file_size} bytes, allowed are {limit}")
                with archive.open(found[0]) as stream:
                    contents.append(stream.read(limit + 1))  # the size in the directory is only a claim
                if len(contents[-1]) != found[0].file_size:
                    raise BadInput(f"{what}: {name} does not have the {found[0].file_size} bytes it claims")
        settings = json.loads(contents[0].decode("utf-8"))
    except DAMAGE as error:
        raise BadInput(f"{what} cannot be read: {shortened(str(error))}") from None
    if not isinstance(settings, dict):
        raise BadInput(f"{what}: its settings are no JSON object")
    return settings, contents[1]


def _tensors(weights: bytes, what: str) -> dict[str, torch.Tensor]:
    """The state of the policy. `weights_only` builds tensors and nothing else; sizes are bounded before it starts."""
    try:
        with zipfile.ZipFile(BytesIO(weights)) as archive:
            members = archive.infolist()
        # torch's own format is a zip of stored members; anything compressed or overlapping could be a bomb
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if len(members) > MAX_MEMBERS or not stored or sum(member.file_size for member in members) > len(weights):
            raise BadInput(f"{what}: {WEIGHTS} is compressed or claims more bytes than it has")
        state = torch.load(BytesIO(weights), map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise BadInput(f"{what}: {WEIGHTS} is no plain set of weights: {shortened(str(error))}") from None
    if not isinstance(state, Mapping):
        raise BadInput(f"{what}: {WEIGHTS} holds a {type(state).__name__}, expected named tensors")
    for key, tensor in state.items():
        if not isinstance(key, str) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise BadInput(f"{what}: {WEIGHTS} holds {shortened(key)}, which is no named tensor")
        if tensor.layout != torch.strided or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise BadInput(f"{what}: tensor {shortened(key)} is {tensor.dtype}, expected plain float32")
    claimed = sum(tensor.nbytes for tensor in state.values())
    if claimed > len(weights):  # a tensor of stride 0 shows one number as often as it likes
        raise BadInput(f"{what}: the tensors of {WEIGHTS} claim {claimed} bytes, it holds {len(weights)}")
    return dict(state)


# ------------------------------------------------------------------------------------------------------------ settings


def _activation(settings: dict[str, Any], what: str) -> Literal["tanh", "relu"]:
    """The activation, after refusing every setting that our policies do not have."""
    described = settings.get("policy_class")
    described = described if isinstance(described, dict) else {}
    module, made = described.get("__module__"), re.match(r"<function (\w+)\.__init__ ", str(described.get("__init__")))
    if module != SB3_POLICIES or made is None or made[1] != "ActorCriticPolicy":
        held = "a policy whose class it does not tell" if made is None else f"a policy of class {module}.{made[1]}"
        reads = next((words for start, words in _READS.items() if made and made[1].startswith(start)), "")
        raise BadInput(
            f"{what} holds {held}{reads}; taken is {SB3_POLICIES}.ActorCriticPolicy alone, the MlpPolicy of "
            "PPO and A2C, which reads one Box"
        )
    given = settings.get("policy_kwargs")
    if isinstance(given, dict):
        readable = {key: value for key, value in given.items() if key not in (":type:", ":serialized:")}
        if ":serialized:" in given and not readable:
            raise BadInput(f"{what}: policy_kwargs are only there as a pickle, which is never read")
        given = readable
    taken = validate(_Settings, {"use_sde": settings.get("use_sde"), "policy_kwargs": given}, what)
    return "tanh" if taken.policy_kwargs.activation_fn == _TANH else "relu"


def _hidden(tensors: Mapping[str, torch.Tensor], what: str) -> tuple[int, ...]:
    """Widths of the hidden layers, which actor and critic must share in shape but not in weights."""
    found: dict[str, dict[int, int]] = {"policy": {}, "value": {}}
    for key, tensor in tensors.items():
        if (match := _LAYER.fullmatch(key)) and tensor.ndim == 2:
            found[match[1]][int(match[2])] = tensor.shape[0]
    actor, critic = ([width for _, width in sorted(layers.items())] for layers in found.values())
    if actor != critic or 0 in actor:
        raise BadInput(
            f"{what}: actor {actor} and critic {critic} have different hidden layers, or empty ones; our policies have "
            "the same in both"
        )
    return tuple(actor)
