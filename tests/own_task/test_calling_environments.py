"""Whatever people do in their environments: what is recorded is what happened, every loop ends, nothing stays open."""

import contextlib
import json
import multiprocessing
import os
import time
import warnings
from contextlib import closing
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
import torch
from strange_environments import Line, away

from pipeline.cli import stage_main
from pipeline.config.loading import validate
from pipeline.config.task import TaskConfig
from pipeline.config.training import Network, PPOTraining
from pipeline.data import content_digest
from pipeline.data.observations import from_rows
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.executors.local import LocalProcesses
from pipeline.executors.news import TrainingCrashed
from pipeline.executors.side_by_side import run_side_by_side
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.train import train
from pipeline.names import Artifact, Tag
from pipeline.play.demonstrators import scripted
from pipeline.play.evaluation import record_episodes, run_episodes
from pipeline.play.filming import film
from pipeline.play.probing import probe_environment
from pipeline.play.rollouts import SLOTS, evaluation_env, from_actor, from_record
from pipeline.policies import act_function, build_policy
from pipeline.tasks import Purpose, Task
from pipeline.tasks.user_code import import_object
from pipeline.tracking.runs import search
from pipeline.tracking.store import connect
from pipeline.validation.replay import TaskReplay, replay_episodes


def make_task(name: str, kwargs: dict | None = None, **changes) -> Task:
    data = {
        "name": "strange",
        "environment": {"id": f"strange_environments:{name}", "kwargs": kwargs or {}},
        "success": {"info": "is_success"},
        "thresholds": {"success_rate": {"min": 0.9}},
        "scenarios": {"default": {}},
        "scenario_sets": {"train": {"default": 1.0}},
        **changes,
    }
    return Task(validate(TaskConfig, data, "test"))


def actor(name: str):
    return scripted(f"strange_environments:{name}", {}).actor


PLAYED = [
    ("Line", "walk", {}),
    ("Same", "walk", {}),
    ("InPlace", "walk", {}),
    ("Table", "pick", {}),
    ("Plain", "look_up", {}),
    ("Plain", "look_up", {"mapping": True}),
]


@pytest.mark.parametrize(("name", "by", "kwargs"), PLAYED)
def test_what_is_recorded_is_what_happened(name, by, kwargs):
    task = make_task(name, kwargs)
    episodes = task.episodes("train", 1, 9, Purpose.RECORD)
    recorded = record_episodes(task, actor(by), episodes, noise_std=0.2, noise_seed=3, n_envs=4)
    assert all(str(r).endswith("bit-identical") for r in replay_episodes(recorded, TaskReplay(task), range(9)))
    env = make_task("Line").make_env("default")
    answer = actor(by).make().act
    for index in range(9):
        episode = recorded.episode(index)
        seen = [float(env.reset(seed=episodes[index].seed)[0][0])]  # where it stands, worked out beside it
        for step, executed in enumerate(episode.executed_actions):
            moved = {"walk": np.sum(executed), "pick": executed - 0.5, "look_up": executed - 0.5}[by]
            seen.append(float(np.clip(seen[-1] + moved * (0.5 if name == "InPlace" else 1), -9, 9)))
            before = from_rows(episode.observations[step : step + 1])
            one = {k: v[0] for k, v in before.items()} if isinstance(before, dict) else before[0]
            np.testing.assert_array_equal(episode.actions[step], answer(one))  # the label, as it was given
        rows = episode.observations
        if by == "look_up":
            places = rows["place"] if kwargs else rows
            assert places.tolist() == [round(2 * x) + 18 for x in seen]
        else:
            np.testing.assert_allclose(rows[:, 0], seen, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "by", "kwargs"), PLAYED)
def test_probing_filming_and_evaluating_call_alike(name, by, kwargs):
    task = make_task(name, kwargs)
    probe = probe_environment(task, 3, 0, actor(by))
    assert probe.repeatable and probe.shown is not None and probe.shown.tolist() == [1.0] * 3
    policy = build_policy(task.observation_space, task.action_space, Network(hidden=(8,)), seed=0)
    episodes = task.episodes("train", 0, 3, Purpose.EVALUATE)
    records = run_episodes(task, act_function(policy), episodes)
    for index, episode in enumerate(episodes):
        choose = from_actor(act_function(policy), task.action_space)
        assert len(film(task, episode, choose).rewards) == records.metrics["length"][index]
    recorded = record_episodes(task, act_function(policy), episodes, 0.0, 0)
    given = recorded.executed_actions.copy()
    seen = film(task, episodes[0], from_record(recorded.episode(0).executed_actions))
    assert seen.episode_return == records.metrics["return"][0]
    np.testing.assert_array_equal(recorded.executed_actions, given)  # nobody changed the record by playing it


def test_an_event_that_is_no_number_never_happens_in_a_film():
    task = make_task("Named", events={"bump": "path", "slip": "why", "fall": "huge", "arrival": "is_success"})
    episode = task.episodes("train", 1, 1, Purpose.RECORD)[0]
    seen = film(task, episode, from_actor(actor("walk"), task.action_space))
    assert seen.events == {"bump": (), "slip": (), "fall": (), "arrival": (len(seen.rewards),)}


def test_pictures_and_answers_that_are_one_array_are_kept_apart():
    task = make_task("Same")
    episodes = task.episodes("train", 1, 9, Purpose.RECORD)
    seen = film(task, episodes[0], from_actor(actor("walk"), task.action_space))
    assert [frame.max() for frame in seen.frames] == list(range(len(seen.frames)))
    recorded = [record_episodes(task, actor(by), episodes, 0.2, 0, n_envs=4) for by in ("walk", "walk_the_same")]
    assert content_digest(recorded[0]) == content_digest(recorded[1])


def test_stacked_frames_of_one_array_differ():
    kwargs = {"stack_size": 3}
    task = make_task("Same", environment={
        "id": "strange_environments:Same",
        "wrappers": [{"name": "FrameStackObservation", "kwargs": kwargs}],
    })  # fmt: skip
    env = task.make_env("default")
    env.reset(seed=1)
    for _ in range(2):
        observation, *_ = env.step(np.ones(1, np.float32))
    np.testing.assert_allclose(np.diff(observation[:, 0]), [1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kwargs", "seen", "told"),
    [
        ("Narrow", {}, np.zeros(3), r"observes an array of shape \(3,\), its space says \(2,\)"),
        ("Plain", {"mapping": True}, {"x": [0.0]}, r"observes {'x': \[0.0\]}, its space is a mapping of place, x"),
        ("Plain", {"mapping": True}, [1, 2], r"observes \[1, 2\], its space is a mapping of place, x"),
    ],
)
def test_an_observation_that_is_none_of_the_declared_space_is_refused_by_name(name, kwargs, seen, told):
    env = make_task(name, kwargs).make_env("default")
    env.unwrapped.see = lambda: seen
    with pytest.raises(BadInput, match=told):
        env.reset(seed=0)


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("step", r"step 6\): RuntimeError: off the map and away \(strange_environments.py:\d+\); mend it first$"),
        ("quit", r"step 6\): SystemExit: window closed \(strange_environments.py:\d+\); mend it first$"),
        ("see", r"step 5\): ValueError: .*'nowhere'.*; mend it first$"),
        ("reset", r"step 0\): RuntimeError: no map \(strange_environments.py:\d+\); mend it first$"),
        ("old", r"step 0\): ValueError: .*; mend it first: reset\(\) returns \(observation, info\), step\(\) five"),
    ],
)
def test_what_an_environment_raises_is_one_line_wherever_it_is_played(way, told):
    task, episode = make_task("Fragile", {"way": way}), Episode("default", 3)
    ways = (
        lambda: run_episodes(task, away, (episode,)),
        lambda: record_episodes(task, away, (episode,), 0.0, 0),
        lambda: film(task, episode, from_actor(away, task.action_space)),
        lambda: probe_environment(task, 1, 0, actor("away")),
    )
    for play in ways:
        with pytest.raises(BadInput, match=r"task 'strange': the environment cannot be played \(.*" + told):
            play()


def test_an_environment_that_cannot_be_made_is_one_line():
    with pytest.raises(BadInput, match=r"cannot be made: RuntimeError: no licence \(strange_environments.py:\d+\)"):
        make_task("Fragile", {"way": "make"}).make_env("default")


def test_what_was_played_in_an_environment_that_cannot_be_closed_is_kept():
    task = make_task("Fragile", {"way": "close"})
    with pytest.warns(
        UserWarning, match="task 'strange': the environment cannot be closed: RuntimeError: disconnected"
    ):
        assert run_episodes(task, actor("walk"), (Episode("default", 3),)).metrics["success"].tolist() == [1.0]


def test_a_module_that_cannot_be_imported_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "misspelt_environments.py").write_text("clss Line: pass")
    (tmp_path / "unnamed_environments.py").write_text("Line.play()")
    (tmp_path / "halved_environments.py").write_text("import math\nmath.half")
    monkeypatch.syspath_prepend(tmp_path)
    for module, told in (("misspelt", "SyntaxError"), ("unnamed", "NameError"), ("halved", "AttributeError")):
        with pytest.raises(BadInput, match=f"'{module}_environments' cannot be imported: {told}: .*mend it first"):
            import_object(f"{module}_environments:Line", "environment.id")


def test_a_script_that_breaks_is_one_line():
    with pytest.raises(BadInput, match=r"lost' cannot act: KeyError: 'the way' \(strange_environments.py:\d+\)"):
        run_episodes(make_task("Line"), actor("lost"), (Episode("default", 3),))


def test_what_an_environment_changes_of_the_process_is_put_back():
    before = os.getcwd(), np.geterr(), list(warnings.filters), torch.get_default_dtype()
    records = run_episodes(make_task("Rough"), actor("walk"), (Episode("default", 3),))
    assert records.metrics["success"].tolist() == [1.0]
    assert (os.getcwd(), np.geterr(), list(warnings.filters), torch.get_default_dtype()) == before


def go_right(observations):
    return np.ones(len(observations), np.int64)


@pytest.fixture
def running_away(monkeypatch) -> Episode:
    """Going right it never ends."""
    monkeypatch.setattr("pipeline.tasks.task.LONGEST_EPISODE", 300)
    env = make_task("Endless").make_env("default")
    return Episode("default", next(seed for seed in range(99) if env.reset(seed=seed)[0][0] > 1))


def test_an_episode_that_does_not_end_is_an_error_that_names_it_wherever_it_is_played(running_away):
    task, episode = make_task("Endless"), running_away
    told = f"task 'strange': the episode of scenario 'default', seed {episode.seed}, has not ended after 300 steps"
    ways = {
        "evaluating": lambda: run_episodes(task, go_right, (episode,)),
        "recording": lambda: record_episodes(task, go_right, (episode,), 0.0, 0),
        "filming": lambda: film(task, episode, from_actor(go_right, task.action_space)),
    }
    for way, play in ways.items():
        with pytest.raises(BadInput) as refused:
            play()
        assert told in str(refused.value), way
        assert "set `horizon`" in str(refused.value), way


def test_a_horizon_is_what_ends_it(running_away):
    for horizon in (30, 305):  # below what is taken for endless, and above
        records = run_episodes(make_task("Endless", horizon=horizon), go_right, (running_away,))
        assert records.metrics["length"].tolist() == [horizon]


# --- how many there are, and where they go ----------------------------------------------------------------------------


@pytest.fixture
def counted():
    """Nothing is open before, nor must anything be after."""
    Line.open.clear()
    Line.made = 0
    yield Line
    assert not Line.open


def test_an_evaluation_makes_few_environments_and_its_figures_do_not_depend_on_how_many(counted):
    task = make_task(
        "Line", scenarios={"default": {}, "other": {}}, scenario_sets={"train": {"default": 2, "other": 1}}
    )
    episodes = task.episodes("train", 3, 60, Purpose.EVALUATE)
    policy = act_function(build_policy(task.observation_space, task.action_space, Network(hidden=(8,)), seed=0))
    returns = {}
    for slots in (1, 2, 3, 7, 16, 40):
        before = counted.made
        records = run_episodes(task, policy, episodes, n_envs=slots)
        returns[slots] = {name: values.tolist() for name, values in records.metrics.items()}
        assert counted.made - before <= 2 * min(slots, SLOTS)  # of each scenario no more than play at once
        assert not counted.open
    assert all(figures == returns[1] for figures in returns.values())
    recordings = [record_episodes(task, policy, episodes, 0.2, 0, n_envs=slots) for slots in (1, 3, 40)]
    assert len({content_digest(recorded) for recorded in recordings}) == 1


def test_environments_that_a_slot_has_left_are_played_on_by_others(counted):
    scenarios = [f"s{i}" for i in range(10)]
    task = make_task(
        "Line", scenarios={s: {} for s in scenarios}, scenario_sets={"train": dict.fromkeys(scenarios, 1.0)}
    )
    env = evaluation_env(task)
    for seed in range(3):
        run_episodes(task, actor("walk"), task.episodes("train", seed, 50, Purpose.EVALUATE), env=env)
    assert counted.made <= SLOTS + 3 * len(scenarios)  # of 160
    env.close()


def test_a_training_makes_its_environments_once_and_closes_them(counted, tmp_path):
    task = make_task("Line").config
    training = {
        "total_timesteps": 256, "n_envs": 2, "network": {"hidden": [8]}, "ppo": {"n_steps": 32, "batch_size": 32},
        "evaluation": {"segments": [{"every_steps": 64}], "episodes": 12},
    }  # fmt: skip
    job = TrainingJob(task, validate(PPOTraining, training, "test"), 1, str(tmp_path), final_episodes=20)
    assert len(train(job, lambda event: None).evaluations) == 5
    assert counted.made <= 1 + 2 + SLOTS  # one to look at, to train in, to evaluate in


def test_an_environment_that_is_refused_is_closed(counted):
    wrong = [{"name": "pipeline.envs.limits:DeclareObservation", "kwargs": {"low": 0.0, "high": -1.0}}]
    task = make_task("Line", environment={"id": "strange_environments:Line", "wrappers": wrong})
    with pytest.raises(BadInput, match="low and high must hold what"):
        task.make_env("default")


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("Table", "pick"),
        *(
            pytest.param(*odd, marks=pytest.mark.slow)
            for odd in (("Same", "walk"), ("InPlace", "walk"), ("Endless", "pick"))
        ),
    ],
)
def test_a_user_goes_from_the_environment_to_a_clone(name, by, counted, store, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("new_task.yaml").write_text("episodes: 4\n")

    def stage(stage: str, *arguments: str) -> None:
        config = "new_task.yaml" if stage == "new_task" else f"configs/x/{stage}.yaml"
        code = stage_main(stage, ["--config", config, *arguments])
        assert code in (0, 1 if stage == "pretrain" else 0), capfd.readouterr().err  # so little may teach nothing
        assert not counted.open, f"{stage} left environments open"

    reference = "strange_environments:{}".format
    stage("new_task", "--env", reference(name), "--name", "x", "--demonstrator", reference(by))
    stage("collect", "--episodes", "40", "--min_episodes", "20")
    stage("validate")
    stage("playback", "--episodes", "[0]")
    stage("pretrain", "--cloning.epochs", "2", "--seeds", "[1]", "--final_episodes", "10")
    stage("evaluate", "--episodes", "10")


def test_bounds_that_an_environment_leaves_are_declared_anew_by_the_task_file(store, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("new_task.yaml").write_text("episodes: 4\n")
    mend = {"name": "pipeline.envs.limits:DeclareObservation", "kwargs": {"low": -3.0, "high": 3.0, "elements": [1]}}
    for name, wrappers, passes in (("narrow", [], False), ("mended", [mend], True)):
        given = ["--env", "strange_environments:Narrow", "--name", name, "--wrappers", json.dumps(wrappers)]
        assert stage_main("new_task", ["--config", "new_task.yaml", *given]) == 0
        Path(f"configs/{name}/collect.yaml").write_text(
            f"task: configs/tasks/{name}.yaml\nepisodes: 30\nscripted: {{demonstrator: strange_environments:walk}}\n"
        )
        assert stage_main("collect", ["--config", f"configs/{name}/collect.yaml"]) == (0 if passes else 1)
        (run,) = search(connect(), {Tag.STAGE: "collect", Tag.TASK: name})
        metadata = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/dataset/metadata.json")
        assert metadata["environment"]["wrappers"] == wrappers
        report = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{Artifact.VALIDATION_MD}")
        assert ("limits:DeclareObservation" in report) != passes


# --- environments with a process of their own ------------------------------------------------------------------------


def simulated(folder: Path, careless: bool, **training) -> TrainingJob:
    task = make_task("Simulator", {"pids": str(folder / "pids"), "careless": careless}).config
    settings = {
        "total_timesteps": 64, "n_envs": 1, "network": {"hidden": [8]}, "ppo": {"n_steps": 32, "batch_size": 32},
        "evaluation": {"segments": [{"every_steps": 64}], "episodes": 2}, **training,
    }  # fmt: skip
    return TrainingJob(task, validate(PPOTraining, settings, "test"), 1, str(folder), final_episodes=2)


def still_there(folder: Path) -> list[int]:
    """Processes that were written down and still run, after a while."""
    pids = [int(line) for line in (folder / "pids").read_text().split()]
    assert pids
    deadline = time.monotonic() + 10
    while (running := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running


def _runs(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.slow
@pytest.mark.parametrize("careless", [False, True])
def test_a_training_of_an_environment_with_a_process_of_its_own_ends_and_leaves_none(tmp_path, careless):
    (result,) = run_side_by_side([simulated(tmp_path, careless)], 1, lambda index, event: None)
    assert result.environment_steps == 64
    assert not still_there(tmp_path)


@pytest.mark.slow
def test_a_training_that_is_stopped_or_killed_takes_its_environments_processes_with_it(tmp_path):
    for how in ("stopped", "killed"):
        (tmp_path / how).mkdir()
        with closing(LocalProcesses(1)) as pool:
            pool.submit(how, simulated(tmp_path / how, careless=False, total_timesteps=10_000_000))
            while not pool.wait(60):
                """Until the first news."""
            if how == "killed":
                (training,) = multiprocessing.active_children()
                training.kill()
                while not any(isinstance(news, TrainingCrashed) for _, news in pool.wait(60)):
                    """Until it is noticed."""
        assert not still_there(tmp_path / how), how
