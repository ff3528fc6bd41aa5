"""One seed of a fine-tuning in every form in which it is handed out: all act as the policy here does."""

import mlflow
import numpy as np
import onnxruntime
import pytest
import torch
from stable_baselines3 import PPO

from pipeline import query
from pipeline.names import Arm, Tag
from pipeline.policies import probe_batch
from pipeline.query import export_policy
from pipeline.tracking.runs import search
from pipeline.tracking.store import connect


@pytest.mark.slow
def test_a_fine_tuned_seed_acts_the_same_as_zip_torchscript_onnx_and_mlflow_model(staged, tmp_path):
    seed = {Tag.STAGE: "finetune_seed", Tag.ARM: Arm.PRETRAINED, Tag.SEED: "1"}
    (run,) = search(connect(), seed, limit=1)
    observations = probe_batch(query.load_ppo(run.info.run_id).observation_space)
    actions = query.load_policy(run.info.run_id)(observations)
    for ending in (".zip", ".pt", ".onnx"):
        assert "written to" in export_policy(run.info.run_id, str(tmp_path / f"policy{ending}"))
    of_run = f"source_run_id = '{run.info.run_id}'"
    models = {model.name: model for model in connect().search_logged_models([run.info.experiment_id], of_run)}
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"), providers=["CPUExecutionProvider"])
    best = mlflow.pyfunc.load_model(f"models:/{models['best'].model_id}")
    forms = {
        "zip": PPO.load(tmp_path / "policy.zip", device="cpu").predict(observations, deterministic=True)[0],
        "TorchScript": torch.jit.load(str(tmp_path / "policy.pt"))(torch.as_tensor(observations)).numpy(),
        "ONNX": session.run(None, {"observations": observations})[0],
        "pyfunc": best.predict(observations),
        "pyfunc, one by one": np.stack([best.predict(row) for row in observations]),
        "pyfunc, double precision": best.predict(observations.astype(np.float64)),
    }
    for form, its in forms.items():
        np.testing.assert_allclose(its, actions, rtol=0, atol=1e-5, err_msg=form)
