"""A policy folder as the MLflow model that wraps it."""

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import mlflow
from gymnasium import spaces
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from pipeline.data.observations import row_dtype
from pipeline.names import Artifact
from pipeline.policies import load_policy

MODEL_CODE = Path(__file__).with_name("policy_model.py")
REQUIREMENTS = ["mlflow", "numpy", "safetensors", "stable-baselines3", "torch"]


def pack(place: Path, folder: Path, model_id: str, run_id: str) -> Path:
    """The MLflow model of a policy folder, written below `place`.

    As `mlflow.pyfunc.save_model` writes it. That warns of the type hints and examples that a batch of arrays with a
    signature does not need, and reads every installed package to warn of versions, which the requirements do not name.
    """
    policy, packed = load_policy(folder), place / "model"
    kept = f"artifacts/{Artifact.POLICY}"
    shutil.copytree(folder, packed / kept)
    shutil.copy(MODEL_CODE, packed)
    python = platform.python_version()
    environments = {
        "conda.yaml": {
            "name": "mlflow-env",
            "channels": ["conda-forge"],
            "dependencies": [f"python={python}", "pip", {"pip": REQUIREMENTS}],
        },
        "python_env.yaml": {
            "python": python,
            "build_dependencies": ["pip", "setuptools", "wheel"],
            "dependencies": ["-r requirements.txt"],
        },
    }
    for name, content in environments.items():
        (packed / name).write_text(json.dumps(content))  # JSON is YAML
    (packed / "requirements.txt").write_text("\n".join(REQUIREMENTS))
    model = Model(model_id=model_id, run_id=run_id)
    model.signature = signature(policy.observation_space, policy.action_space)
    mlflow.pyfunc.add_to_model(
        model,
        loader_module="mlflow.pyfunc.loaders.code_model",
        conda_env="conda.yaml",
        python_env="python_env.yaml",
        model_code_path=MODEL_CODE.name,
        artifacts={"policy": {"path": kept, "uri": kept}},
        streamable=False,
    )
    model.save(str(packed / "MLmodel"))
    return packed


def signature(observations: spaces.Space[Any], actions: spaces.Space[Any]) -> ModelSignature:
    """Batched tensors of the policy's spaces, one by name for every key of a Dict."""

    def tensor(space: spaces.Space[Any], name: str | None = None) -> TensorSpec:
        row = row_dtype(space)
        return TensorSpec(row.base, (-1, *row.shape), name)

    parts = observations.spaces if isinstance(observations, spaces.Dict) else {None: observations}
    inputs = Schema([tensor(space, name) for name, space in parts.items()])
    return ModelSignature(inputs=inputs, outputs=Schema([tensor(actions)]))
