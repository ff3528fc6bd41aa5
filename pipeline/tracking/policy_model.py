"""The MLflow model behind every logged policy (models from code: MLflow runs this file, nothing is unpickled).

model = mlflow.pyfunc.load_model("models:/social_nav-expert@approved")
actions = model.predict(observations)      # (n, *obs_shape) -> (n, *act_shape), or one of each; a Dict: arrays by key

Numbers of any type are taken for those of the task's. Where this package is not installed, the copy of what is needed
of it that lies beside the model is imported.

MLflow runs the copy of this file that lies beside the policy in the store, whoever put it there, and holds nothing to
a digest: `pipeline.query.load_policy` does, and runs nothing.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from gymnasium import spaces
from mlflow.pyfunc import PythonModel, PythonModelContext

if find_spec("pipeline") is None:
    sys.path.append(str(Path(__file__).with_name("pipeline.zip")))

from pipeline.policies import act_function, load_policy


class PolicyModel(PythonModel):
    """Deterministic actions for a batch of observations, or for one."""

    def load_context(self, context: PythonModelContext) -> None:
        self._policy = load_policy(Path(context.artifacts["policy"]))
        self._act = act_function(self._policy)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints as schemas
        space = self._policy.observation_space
        if not isinstance(space, spaces.Dict):
            observations, single = _batch(space, model_input, "observations")
            actions = self._act(observations)
        else:
            if not isinstance(model_input, dict) or set(model_input) != set(space.spaces):
                raise ValueError(f"observations must be arrays by the keys {sorted(space.spaces)}")
            parts = {key: _batch(part, model_input[key], key) for key, part in space.spaces.items()}
            single = all(alone for _, alone in parts.values())
            actions = self._act({key: rows for key, (rows, _) in parts.items()})
        return np.asarray(actions[0] if single else actions)


def _batch(space: spaces.Space[Any], values: Any, name: str) -> tuple[np.ndarray, bool]:
    """(n, *shape) of the space's dtype, and whether it was one observation alone. Raises ValueError."""
    rows, shape = np.asarray(values), space.shape or ()
    if rows.shape not in (shape, (len(rows) if rows.ndim else 0, *shape)) or rows.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} of shape {rows.shape} and type {rows.dtype}: expected numbers of shape {('n', *shape)}"
        )
    return rows.astype(space.dtype).reshape(-1, *shape), rows.shape == shape


mlflow.models.set_model(PolicyModel())
