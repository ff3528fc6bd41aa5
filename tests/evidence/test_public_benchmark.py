"""The public benchmark: its settings are alike in all arms, its table is what its JSON files say, and it runs."""

import json
import re
import shutil
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from project import mlflow_run, uri_of
from scipy import stats

from benchmarks import public
from benchmarks.adroit_door import convert
from benchmarks.public import ARMS, RESULTS, TASKS, WORDS, aggregate_table, config_of, extract, table
from pipeline.config.loading import load
from pipeline.config.stages import Main
from pipeline.data.formats.npz import read_plain_npz
from pipeline.names import Arm, Artifact, Tag
from pipeline.stages.main import plan
from pipeline.tracking.runs import read_text_artifact, search
from pipeline.tracking.store import connect

PAGE = Path("docs/benchmark.md")
ZOO = Path(__file__).parents[3] / "shared/data/zoo"  # beside the repository
SIGNS = {(False, False): "", (True, False): "<= ", (False, True): ">= ", (True, True): "? "}
WRITTEN = sorted(RESULTS.glob("*.json"))


@pytest.fixture(autouse=True)
def _in_repository(in_repository):
    """Configs are named relative to the repository."""


def test_a_task_trains_every_arm_with_one_network_on_seeds_that_have_a_clone():
    for task, agent in TASKS.items():
        stages = plan(load(Main, config_of(task)))
        if config_of(task).startswith("configs/benchmark"):
            assert (stages.promote is not None) == (agent is not None)
            assert {"clone", "naive", "residual"} <= set(stages.finetune.arms), task
        assert len(stages.finetune.seeds) >= 5 and set(stages.finetune.seeds) <= set(stages.pretrain.seeds), task
        assert stages.pretrain.network == stages.finetune.training.network, task
        assert stages.pretrain.cloning.gamma == stages.finetune.training.ppo["gamma"], task


def rows_of(page: str) -> dict[tuple[str, str], list[str]]:
    """(task, arm) -> cells of the page's table."""
    found, task = {}, ""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 10 and cells[1] in {WORDS.get(arm, arm) for arm in ARMS}:
            task = cells[0].partition(",")[0] or task
            found[task, cells[1]] = cells[2:]
    return found


def ends_of(run: dict, result: dict) -> dict[str, float]:
    """Of a training: what its best checkpoint and its last evaluation came to, as shares of the demonstrator's."""
    last = run["evaluations"][result["figure"]][-1]
    return {"best": run["final"] / result["unit"], "last": last / result["unit"]}


def numbers(cell: str) -> list[float]:
    """`<= 0.08 [0.00, 0.09]` -> 0.08, 0.00, 0.09."""
    return [float(number) for number in re.findall(r"-?\d+\.\d+", cell)]


@pytest.mark.parametrize("file", WRITTEN, ids=[file.stem for file in WRITTEN])
def test_the_table_is_what_the_evaluations_say(file):
    result, rows = json.loads(file.read_text()), rows_of(PAGE.read_text())
    warm = {run["seed"]: run for run in result["arms"][Arm.PRETRAINED]["runs"]}
    by_seed: dict[str, dict[int, int]] = {}
    sides: dict[str, tuple[bool, bool]] = {}  # may the truth be smaller, may it be larger
    for arm, trained in result["arms"].items():
        met, steps, at_floor = 0, [], False
        for run in trained["runs"]:
            held = [
                at
                for at in range(len(run["steps"]) - result["patience"] + 1)
                if all(
                    (
                        bound["min"] is None
                        or min(run["evaluations"][figure][at : at + result["patience"]]) >= bound["min"]
                    )
                    and (
                        bound["max"] is None
                        or max(run["evaluations"][figure][at : at + result["patience"]]) <= bound["max"]
                    )
                    for figure, bound in result["target"].items()
                )
            ]
            met += bool(held)
            at_floor |= held[:1] == [0]
            steps.append(run["steps"][max(held[0], 1)] if held else run["steps"][-1])
        by_seed[arm] = {run["seed"]: count for run, count in zip(trained["runs"], steps, strict=True)}
        cells = rows[result["task"], WORDS.get(arm, arm)]
        assert cells[0] == f"{met} of {len(trained['runs'])}"
        sides[arm] = at_floor, met < len(trained["runs"])
        assert cells[1] == ("> " if met == 0 else SIGNS[sides[arm]]) + f"{mean(steps):,.0f}"
        for end, cell in (("best", 3), ("last", 5)):
            shares = np.array([ends_of(run, result)[end] for run in trained["runs"]])
            assert float(cells[cell]) == pytest.approx(shares.mean(), abs=0.0051)
            if arm != Arm.PRETRAINED:
                matched = np.array([ends_of(warm[run["seed"]], result)[end] for run in trained["runs"]])
                low, high = stats.ttest_rel(matched, shares).confidence_interval()
                expected = pytest.approx([(matched - shares).mean(), low, high], abs=0.0051, nan_ok=True)
                assert numbers(cells[cell + 1]) == expected
        assert cells[7] == f"{trained['wall_seconds']:,.0f}"
    scratch_never_at_all = rows[result["task"], Arm.SCRATCH][0].startswith("0 of")
    for arm, ratio in result["ratios"].items():
        matched = {run["seed"] for run in result["arms"][arm]["runs"]}
        from_scratch = [steps for seed, steps in by_seed[Arm.SCRATCH].items() if seed in matched]
        assert ratio["value"] == pytest.approx(mean(by_seed[arm].values()) / mean(from_scratch))
        (floor, never), (floor_of_scratch, scratch_never) = sides[arm], sides[Arm.SCRATCH]
        cell = rows[result["task"], WORDS.get(arm, arm)][2]
        nobody = rows[result["task"], WORDS.get(arm, arm)][0].startswith("0 of") and scratch_never_at_all
        sign = SIGNS[scratch_never or floor, never or floor_of_scratch]
        if nobody:
            assert cell == ""
        else:
            assert cell.startswith(f"{sign}{numbers(cell)[0]:.2f} [")
            assert numbers(cell) == pytest.approx([ratio[end] for end in ("value", "low", "high")], abs=0.0051)


def test_the_aggregate_is_the_mean_of_the_middle_half_of_all_runs_of_all_tasks():
    results, page = [json.loads(file.read_text()) for file in WRITTEN], PAGE.read_text()
    for line in aggregate_table(results).splitlines()[2:]:
        arm, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        of_arm = next(name for name in ARMS if WORDS.get(name, name) == arm)
        row = next(row for row in page.splitlines() if row.startswith(f"| {arm} ") and row.count("|") == 4)
        for end, cell, on_page in zip(("best", "last"), cells, row.split("|")[2:-1], strict=True):
            runs = sorted(ends_of(run, result)[end] for result in results for run in result["arms"][of_arm]["runs"])
            cut = len(runs) // 4
            value, low, high = numbers(cell)
            assert value == pytest.approx(mean(runs[cut : len(runs) - cut]), abs=0.0051)
            assert low <= value <= high
            assert numbers(on_page) == pytest.approx([value, low, high], abs=0.0101)


def test_the_page_says_where_every_figure_comes_from():
    page = PAGE.read_text()
    for file in WRITTEN:
        result = json.loads(file.read_text())
        rows = [row for row in page.splitlines() if result["commit"][:7] in row and result["created_at"][:10] in row]
        (row,) = (row for row in rows if result["task"] in row.split("|")[1].strip().split(", "))
        for name, version in result["versions"].items():
            assert f"{name} {version}" in row


def test_an_agent_lies_as_the_zoo_keeps_it_or_in_a_folder_of_its_name(tmp_path, capsys):
    for place in ("tqc/Hopper-v3_1", "sac-Hopper-v3"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "Hopper-v3.zip").touch()
    assert public.zip_of("tqc-Hopper-v3", str(tmp_path)) == tmp_path / "tqc/Hopper-v3_1/Hopper-v3.zip"
    assert public.zip_of("sac-Hopper-v3", str(tmp_path)) == tmp_path / "sac-Hopper-v3/Hopper-v3.zip"
    with pytest.raises(SystemExit) as ended:
        public.zip_of("ppo-Hopper-v3", str(tmp_path))
    assert ended.value.code == 2 and "ppo-Hopper-v3 is not in" in capsys.readouterr().err
    # SAC's arms, where a task has them, are a comparison of their own, on fewer seeds
    said = public.comparisons("hopper", str(tmp_path))
    assert list(said) == ["hopper-ppo", "hopper-sac"]
    assert f"expert={tmp_path}/tqc/Hopper-v3_1/Hopper-v3.zip" in said["hopper-ppo"]
    assert "finetune.arms=[clone, naive, residual]" in said["hopper-ppo"] and "matched_seeds=3" in said["hopper-sac"]
    assert list(public.comparisons("lunar_lander", None)) == ["lunar_lander-ppo"]


def test_what_a_task_needs_is_asked_for_before_any_task_is_run(monkeypatch, capsys):
    wanted = {("half_cheetah",): "say where it is: --zoo", ("swimming",): "task 'swimming' is not of the benchmark"}
    monkeypatch.setattr(public, "METAWORLD", Path("nowhere"))
    monkeypatch.setattr(public, "DOOR", Path("nowhere.npz"))
    wanted[("metaworld_reach",)] = "run `make metaworld` first"
    wanted[("lunar_lander", "adroit_door")] = "task 'adroit_door': no "
    for tasks, line in wanted.items():
        monkeypatch.setattr("sys.argv", ["public", *tasks])
        with pytest.raises(SystemExit) as ended:
            public.main()
        assert ended.value.code == 2 and line in capsys.readouterr().err, tasks


def test_the_door_is_open_where_the_recorded_reward_says_so(tmp_path):
    rewards = np.array([-0.3, 2.1, 10.2, 20.3, 10.1, -0.2, 20.4])  # below 0.2 rad, above it, above 1.0, above 1.35
    arrays = {"observations": np.zeros((7, 39)), "actions": np.zeros((7, 28)), "rewards": rewards}
    np.savez(tmp_path / "given.npz", **arrays, lengths=np.array([5, 2]), initial_qpos=np.zeros((2, 30)))
    assert convert(tmp_path / "given.npz", tmp_path / "door.npz").endswith("at some step of 2, at the last step of 1")
    first, second = read_plain_npz(tmp_path / "door.npz").episodes
    assert first.infos["success"].tolist() == [0, 0, 0, 1, 0] and second.infos["success"].tolist() == [0, 1]
    assert np.array_equal(np.concatenate([first.rewards, second.rewards]), rewards)


SHORT = {
    "promote.rules": "[{scenario_set: train, metric: return_mean, min: 500}]",
    "pretrain.cloning.epochs": "2",
    "pretrain.cloning.evaluate_every_epochs": "2",
    "pretrain.evaluation.episodes": "2",
    "pretrain.final_episodes": "5",
    "pretrain.judgement.episodes": "5",
    "finetune.final_episodes": "5",
    "finetune.training.evaluation.episodes": "2",
    "finetune.arms": "[clone, naive, residual]",
    "matched_seeds": "2",
    "ppo_timesteps": "512",
    "finetune.training.ppo.n_steps": "256",
    "pretrain.cloning.critic_epochs": "2",
    "compare.playback_episodes": "0",
}


@pytest.mark.slow
def test_a_task_runs_from_the_zip_to_its_row_and_gives_the_same_digests_in_another_folder(tmp_path, monkeypatch):
    if not ZOO.is_dir():
        pytest.skip(f"the agents of the RL Zoo are not at {ZOO}: put them there (DLR-RM/rl-trained-agents)")
    (agent,) = (ZOO / TASKS["hopper_sac"]).glob("*.zip")
    monkeypatch.setenv("MUJOCO_GL", "off")  # no film of the gate
    found = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy("configs/benchmark/hopper_sac.yaml", folder / "main.yaml")
        ended = mlflow_run(folder, "main", f"expert={agent}", *(f"{key}={value}" for key, value in SHORT.items()))
        assert ended.code in (0, 1), ended.err  # so little training may well make nothing faster
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri_of(folder))
        client = connect()
        (compared,) = search(client, {Tag.STAGE: "compare"})
        report = json.loads(read_text_artifact(client, compared.info.run_id, f"{Artifact.REPORT}/report.json"))
        result = json.loads(json.dumps(extract(report, "hopper_sac")))
        written = rows_of(table([result]))
        assert set(result["arms"]) == {"scratch", "pretrained", "clone", "naive", "residual"}
        assert {arm for _, arm in written} == {WORDS.get(arm, arm) for arm in result["arms"]}
        digests = sorted(
            (run.info.run_name, kind, run.data.tags[kind])
            for run in search(client, {}, status=None)
            for kind in (Tag.DATASET_DIGEST, Tag.WEIGHTS_DIGEST)
            if kind in run.data.tags
        )
        assert len(digests) >= 11  # the dataset, and five arms of two seeds
        found.append((digests, result["arms"]))
    (digests, arms), (others, again) = found
    assert digests == others
    for arm, trained in arms.items():
        assert trained["runs"] == again[arm]["runs"]
