"""The RL Zoo's `config.yml` beside a policy: what stood between the environment and the policy.

Its YAML carries Python tags. Of those only the ordered mapping and the tuple are understood, as plain data; any other
is refused by name, and nothing is ever constructed by the name that a file gives.
"""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from pipeline.errors import BadInput, shortened
from pipeline.files import DAMAGE

MAX_BYTES: Final = 1_000_000


@dataclass(frozen=True)
class ZooConfig:
    """What of the RL Zoo's hyperparameters matters to a policy that acts."""

    normalized: bool  # observations, by VecNormalize
    wrappers: tuple[str, ...]  # `module.Class` of each, the innermost first
    frame_stack: int  # frames that were stacked


class _ZooLoader(yaml.SafeLoader):
    """Safe YAML, and the Zoo's two Python tags as plain data."""


def _mapping(loader: yaml.SafeLoader, node: yaml.Node) -> dict[Any, Any]:
    assert isinstance(node, yaml.SequenceNode)
    (pairs,) = loader.construct_sequence(node, deep=True)
    return {key: value for key, value in pairs}


def _sequence(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    assert isinstance(node, yaml.SequenceNode)
    return loader.construct_sequence(node, deep=True)


_ZooLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _mapping)
_ZooLoader.add_constructor("tag:yaml.org,2002:python/tuple", _sequence)


def read_zoo_config(path: Path) -> ZooConfig:
    """Read a `config.yml`. Raises BadInput for damage and for Python tags beyond mappings and tuples."""
    what = f"{path.name} beside the zip"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadInput(f"{what} is larger than the {MAX_BYTES} bytes allowed")
        settings = _ZooLoader(path.read_text()).get_single_data()
        # `normalize` is true, or the text of a mapping: dict(norm_obs=True, norm_reward=False), {'norm_obs': True}
        normalize = settings.get("normalize", False)
        if isinstance(normalize, str):
            text, written = normalize, ast.parse(normalize, mode="eval").body
            if isinstance(written, ast.Call) and ast.unparse(written.func) == "dict" and not written.args:
                normalize = {k.arg: ast.literal_eval(k.value) for k in written.keywords}
            elif isinstance(written, ast.Dict):
                normalize = ast.literal_eval(written)
            else:
                raise ValueError(f"normalize is {shortened(text)}, expected true, false or dict(norm_obs=..., ...)")
        if isinstance(normalize, dict):
            normalize = normalize.get("norm_obs", True)
        listed = settings.get("env_wrapper") or []
        wrappers = [next(iter(one)) if isinstance(one, dict) else one for one in _listed(listed)]
        return ZooConfig(bool(normalize), tuple(map(str, wrappers)), int(settings.get("frame_stack") or 1))
    except (*DAMAGE, yaml.YAMLError, SyntaxError) as error:
        told = f"{type(error).__name__}: {shortened(' '.join(str(error).split()))}"
        raise BadInput(f"{what} cannot be read: {told}") from None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
