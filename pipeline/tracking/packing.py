"""A policy folder as the MLflow model that wraps it."""

import io
import json
import platform
import shutil
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

from gymnasium import spaces
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from pipeline.data.observations import row_dtype
from pipeline.names import Artifact
from pipeline.policies import read_spec

MODEL_CODE = Path(__file__).with_name("policy_model.py")
CODE = "pipeline.zip"  # what a policy needs of this package: a model runs where it is not installed
CODE_ROOMS = ("policies", "data", "config", "__init__", "names", "errors", "files")
REQUIREMENTS = [
    "gymnasium", "mlflow", "numba", "numpy", "pydantic", "pyyaml", "safetensors", "stable-baselines3", "torch",
]  # fmt: skip


def pack(place: Path, folder: Path, model_id: str, run_id: str) -> Path:
    """The MLflow model of a policy folder, written below `place`.

    As `mlflow.pyfunc.save_model` writes it. That warns of the type hints and examples that a batch of arrays with a
    signature does not need, and reads every installed package to warn of versions, which the requirements do not name.
    """
    packed = place / "model"
    kept = f"artifacts/{Artifact.POLICY}"
    shutil.copytree(folder, packed / kept)
    shutil.copy(MODEL_CODE, packed)
    (packed / CODE).write_bytes(_code())
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
    model.signature = signature(read_spec(folder).action_space)
    # by `mlflow.pyfunc.add_to_model`, which this is, all of `mlflow.pyfunc` would be imported
    model.add_flavor(
        "python_function",
        loader_module="mlflow.pyfunc.loaders.code_model",
        python_version=python,
        env={"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
        model_code_path=MODEL_CODE.name,
        artifacts={"policy": {"path": kept, "uri": kept}},
        streamable=False,
    )
    model.save(str(packed / "MLmodel"))
    return packed


@cache
def _code() -> bytes:
    """The modules that reading a policy and acting with it imports, as a zip; the same modules, the same bytes."""
    package, content = MODEL_CODE.parents[1], io.BytesIO()
    rooms = [package / room if (package / room).is_dir() else package / f"{room}.py" for room in CODE_ROOMS]
    with zipfile.ZipFile(content, "w") as archive:
        for path in (file for room in rooms for file in (sorted(room.rglob("*.py")) if room.is_dir() else [room])):
            # without the time of the file
            member = zipfile.ZipInfo(str(path.relative_to(package.parent)))
            archive.writestr(member, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return content.getvalue()


def signature(actions: spaces.Space[Any]) -> ModelSignature:
    """Of what comes out, batched. What goes in is checked by the model, which takes more than one schema would."""
    row = row_dtype(actions)
    return ModelSignature(outputs=Schema([TensorSpec(row.base, (-1, *row.shape))]))
