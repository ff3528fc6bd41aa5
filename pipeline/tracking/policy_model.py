"""The MLflow model behind every logged policy (models from code: MLflow runs this file, nothing is unpickled).

model = mlflow.pyfunc.load_model("models:/social_nav-expert@approved")
actions = model.predict(observations)      # (n, observation size) -> (n, action size); a mapping of arrays for a Dict

MLflow runs the copy of this file that lies beside the policy in the store, whoever put it there, and holds nothing to
a digest: `pipeline.query.load_policy` does, and runs nothing.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from gymnasium import spaces
from mlflow.pyfunc import PythonModel, PythonModelContext

from pipeline.policies import act_function, load_policy


class PolicyModel(PythonModel):
    """Deterministic actions for a batch of observations."""

    def load_context(self, context: PythonModelContext) -> None:
        self._policy = load_policy(Path(context.artifacts["policy"]))
        self._act = act_function(self._policy)

    def predict(
        self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        space = self._policy.observation_space
        if isinstance(space, spaces.Dict):
            return np.asarray(self._act({key: _batch(part, model_input[key]) for key, part in space.spaces.items()}))
        return np.asarray(self._act(_batch(space, model_input)))


def _batch(space: spaces.Space[Any], values: Any) -> np.ndarray:
    return np.asarray(values, dtype=space.dtype).reshape(-1, *(space.shape or ()))


mlflow.models.set_model(PolicyModel())
