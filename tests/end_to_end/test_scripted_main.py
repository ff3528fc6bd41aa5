"""A task whose demonstrator is a script: `main` without an expert, from the recording to the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.envs.box2d.lunar_lander import heuristic as gymnasium_heuristic
from project import mlflow_run

from pipeline import query
from pipeline.cli import stage_main
from pipeline.config.loading import load
from pipeline.config.stages import Main
from pipeline.data import UNAPPROVED
from pipeline.envs.lunar_lander import heuristic
from pipeline.errors import BadInput
from pipeline.names import Arm, Artifact, Metric, Tag
from pipeline.report.stage_pages import STRIP
from pipeline.stages import run_stage
from pipeline.stages.main import plan
from pipeline.tracking.runs import read_text_artifact, search
from pipeline.tracking.store import connect

SMOKE = "configs/smoke/lunar_lander/main.yaml"
SCRIPT = "pipeline.envs.lunar_lander:heuristic"


@pytest.fixture(autouse=True)
def _in_repository(in_repository):
    """Configs are named relative to the repository."""


@pytest.mark.slow
def test_main_needs_no_expert_and_every_stage_says_that_nobody_approved_one(store):
    config = yaml.safe_load(Path(SMOKE).read_text())
    # by itself it warms up with fixed values; of discrete actions none has a deviation to try
    config["overrides"] = {"compare.playback_episodes": "0", "finetune.warm_start": "adaptive"}
    (store / "main.yaml").write_text(yaml.safe_dump(config))
    ended = mlflow_run(store, "main")
    assert ended.code == 0, ended.err
    client = connect()
    (main,) = search(client, {Tag.STAGE: "main"})
    nested = [run.data.tags[Tag.STAGE] for run in search(client, {"mlflow.parentRunId": main.info.run_id})]
    assert nested[::-1] == ["collect", "pretrain", "baseline", "finetune", "compare"]
    assert not client.search_registered_models()
    (collect,) = search(client, {Tag.STAGE: "collect"})
    stored = query.load_demonstrations(collect.data.tags[Tag.DATASET_ID])
    returns = stored.trajectories.metrics[Metric.RETURN]
    assert len(returns) == 20 and returns.min() >= 200  # the filter's
    # rollout statistics, recomputed
    for name, value in (("mean", returns.mean()), ("median", np.median(returns)), ("std", returns.std())):
        assert collect.data.metrics[f"eval/return_{name}"] == pytest.approx(value)
    assert collect.data.metrics["eval/length_max"] == stored.trajectories.lengths.max()
    # said plainly
    assert stored.metadata.demonstrator["approval"] == UNAPPROVED
    assert UNAPPROVED in read_text_artifact(client, collect.info.run_id, Artifact.VALIDATION_MD)
    (compared,) = search(client, {Tag.STAGE: "compare"})
    report = json.loads(read_text_artifact(client, compared.info.run_id, f"{Artifact.REPORT}/report.json"))
    ranked = {one["arm"] for one in report["comparison"]["ranking"]}
    assert ranked == {"pretrained", "clone", "naive", "residual"}  # against scratch; sac takes no discrete actions
    for run in search(client, {Tag.STAGE: "finetune_seed", Tag.ARM: Arm.PRETRAINED}):
        decided = {name.removeprefix("warm_start/") for name in run.data.metrics if name.startswith("warm_start/")}
        assert decided == {"clone_penalty", "learning_rate_factor", "critic_burn_in_steps"}
    assert "script that demonstrated" in json.dumps(report) and UNAPPROVED in json.dumps(report)
    (finetune,) = search(client, {Tag.STAGE: "finetune"})
    assert finetune.data.tags[Tag.SHIFT] == ("shifted" if finetune.data.metrics["shift/p_value"] <= 0.01 else "alike")


def test_collect_prints_steps_reward_and_actions(store, tmp_path):
    settings = yaml.safe_load(Path("configs/smoke/lunar_lander/collect.yaml").read_text())
    path = tmp_path / "collect.yaml"
    path.write_text(yaml.safe_dump({**settings, "episodes": 4, "min_episodes": 1, "n_envs": 4}))
    collected = run_stage("collect", str(path), {}, {})
    assert collected.summary[1].startswith(f"  demonstrations: script {SCRIPT} (version ")
    assert collected.summary[1].endswith(f"; {UNAPPROVED}")
    table = collected.table.splitlines()
    trajectories = query.load_demonstrations(collected.outputs["dataset"]).trajectories
    steps = next(line for line in table if line.startswith("| steps"))
    assert f"| {trajectories.lengths.min():.0f} | {trajectories.lengths.max():.0f} |" in " ".join(steps.split())
    assert any(line.startswith("| return") for line in table)
    shares = np.bincount(trajectories.actions, minlength=4) / trajectories.steps
    (strip,) = (line.rpartition(": ")[2] for line in table if line.startswith("action[0] from 0 to 3: "))
    assert [STRIP.index(level) for level in strip] == np.ceil(shares / shares.max() * (len(STRIP) - 1)).tolist()
    (run,) = search(connect(), {Tag.STAGE: "collect"})
    rows = read_text_artifact(connect(), run.info.run_id, "statistics.md").splitlines()
    listed = [line.split("|")[2].strip() for line in rows if "%" in line and "█" in line]
    assert listed[-4:] == [f"{share:.1%}" for share in shares]


def test_the_script_is_gymnasiums_own_heuristic():
    for continuous in (False, True):
        env = gym.make("LunarLander-v3", continuous=continuous)
        for seed in range(3):
            observation, over = env.reset(seed=seed)[0], False
            while not over:
                action = heuristic(observation, continuous)
                assert np.array_equal(action, np.float32(gymnasium_heuristic(env, observation)))
                assert env.action_space.contains(action)
                observation, _, terminated, truncated, _ = env.step(action)
                over = terminated or truncated


def main_config(tmp_path: Path, **stages: Any) -> Main:
    data = yaml.safe_load(Path(SMOKE).read_text())
    data["stages"] = {k: v for k, v in {**data["stages"], **stages}.items() if v is not None}
    path = tmp_path / "main.yaml"
    path.write_text(yaml.safe_dump(data))
    return load(Main, str(path))


def test_an_expert_is_approved_exactly_when_collect_records_from_one(tmp_path):
    assert plan(main_config(tmp_path)).train_expert is None
    with pytest.raises(BadInput, match=r"stages\.promote is given: collect takes its demonstrations from scripted"):
        plan(main_config(tmp_path, promote="configs/smoke/promote.yaml"))
    with pytest.raises(BadInput, match=r"stages\.promote is missing: collect records from an expert"):
        plan(main_config(tmp_path, collect="configs/smoke/collect.yaml"))


def test_without_the_training_of_an_expert_one_must_be_given(store, tmp_path):
    data = yaml.safe_load(Path("configs/smoke/main.yaml").read_text())
    del data["stages"]["train_expert"]
    path = tmp_path / "main.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(BadInput, match=r"no expert: give one .*-P expert="):
        run_stage("main", str(path), {}, {})


def test_main_takes_the_settings_of_a_stage_in_place_of_the_path_of_its_config(tmp_path):
    paths = yaml.safe_load(Path(SMOKE).read_text())["stages"]
    settings = {stage: yaml.safe_load(Path(file).read_text()) for stage, file in paths.items()}
    whole = main_config(tmp_path, **settings)
    assert plan(whole) == plan(load(Main, SMOKE))
    changed = plan(replace(whole, overrides={"collect.episodes": "7"}, matched_seeds=4))
    assert (changed.collect.episodes, changed.finetune.seeds) == (7, (1, 2, 3, 4))
    settings["collect"]["episode"] = 3
    with pytest.raises(BadInput, match=r"main: stages\.collect: unknown key 'episode'.*episodes"):
        plan(main_config(tmp_path, **settings))


def test_an_expert_that_nobody_would_ask_is_refused(store):
    with pytest.raises(BadInput, match=r"expert 'models:/x/1' has no use: .*scripted"):
        run_stage("main", SMOKE, {"expert": "models:/x/1"}, {})


def test_sac_on_discrete_actions_is_refused_by_name_before_anything_is_done(store, capfd):
    arms = '{"finetune.arms": "{rlpd: {algorithm: sac, demonstrations: 0.5}}"}'
    assert stage_main("main", ["--config", SMOKE, "--overrides", arms]) == 2
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("error"))
    assert "arm 'rlpd': algorithm 'sac' takes continuous actions alone" in line and "Discrete(4)" in line
    assert {run.data.tags[Tag.STAGE] for run in search(connect(), {}, status=None)} == {"main"}
