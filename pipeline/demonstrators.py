"""Who demonstrates: a policy, or a scripted demonstrator named `module:Class`, with its provenance.

A scripted demonstrator is a class whose instances have `act(observations) -> actions` for a batch: (n, *obs_shape) to
(n, *act_shape). It needs no approval; its provenance is its qualified name, the digest of its source and its arguments.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput, shortened
from pipeline.policies import WRAPPERS, ActFunction, act_function, load_policy, read_spec
from pipeline.tasks import Task, call_with_user_arguments, import_object


@dataclass(frozen=True)
class Demonstrator:
    """Something that acts, and what a dataset says about it."""

    act: ActFunction  # (n, *obs_shape) -> (n, *act_shape)
    provenance: dict[str, Any]  # kind, name, version, digest


def policy_actions(task: Task, folder: str | Path, reference: str, deterministic: bool = True) -> ActFunction:
    """What a policy artifact does in a task. Raises BadInput when it was made for other observations or actions."""
    policy = load_policy(folder)
    for what in ("observation_space", "action_space"):
        its, ours = getattr(policy, what), getattr(task, what)
        if its != ours:
            raise BadInput(
                f"policy {reference} does not fit task {task.config.name!r}: its {what} is {shortened(str(its))}, the "
                f"task's is {shortened(str(ours))}; give a policy that was trained on this task"
            )
    task.refuse_other_wrappers(read_spec(folder).provenance.get(WRAPPERS, []), f"policy {reference}")
    return act_function(policy, deterministic)


def from_policy(task: Task, folder: str | Path, name: str, version: str, digest: str) -> Demonstrator:
    """The deterministic actions of a policy artifact. Raises BadInput when it does not fit the task."""
    provenance = {"kind": "expert", "name": name, "version": version, "digest": digest}
    return Demonstrator(policy_actions(task, folder, f"{name}/{version}"), provenance)


def scripted(reference: str, kwargs: Mapping[str, Any]) -> Demonstrator:
    """The scripted demonstrator `module:Class`. Raises BadInput when it cannot be made or cannot act."""
    cls = import_object(reference, "scripted.demonstrator")
    instance = call_with_user_arguments(cls, f"scripted demonstrator {reference!r}", **kwargs)
    if not callable(getattr(instance, "act", None)):
        raise BadInput(f"scripted demonstrator {reference!r} has no method act(observations); give it one")
    source = inspect.getsource(inspect.getmodule(cls) or cls)
    digest = hashlib.sha256(json.dumps([reference, source, dict(kwargs)], sort_keys=True).encode()).hexdigest()[:36]
    provenance = {"kind": "scripted", "name": reference, "version": digest[:12], "digest": digest}
    return Demonstrator(instance.act, {**provenance, "kwargs": dict(kwargs)})
