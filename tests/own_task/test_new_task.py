"""`new_task` measures an environment, writes configs that every stage reads, and writes nothing when it refuses."""

from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest

from pipeline.cli import stage_main
from pipeline.config.loading import load, load_task, parse_yaml, validate
from pipeline.config.stages import STAGE_CONFIGS, NewTask
from pipeline.config.task import TaskConfig
from pipeline.demonstrators import scripted
from pipeline.errors import BadInput
from pipeline.names import Tag
from pipeline.probing import Probe, probe_environment, sizes
from pipeline.report.new_task import success_of, summary, task_files
from pipeline.stages.new_task import write_new
from pipeline.tasks import Task
from pipeline.tracking.runs import search
from pipeline.tracking.store import connect

KNOWN = "strange_environments:Known"
LIMIT = "[{name: pipeline.envs.limits:LimitAction, kwargs: {low: -1.0, high: 1.0}}]"


def probed(env: str = KNOWN, by: str | None = None, **kwargs) -> Probe:
    data = {
        "name": "probed",
        "environment": {"id": env, "kwargs": kwargs},
        "success": {"return_at_least": 0.0},
        "thresholds": {},
        "scenarios": {"default": {}},
        "scenario_sets": {"train": {"default": 1}},
    }
    actor = None if by is None else scripted(f"strange_environments:{by}", {}).actor
    return probe_environment(Task(validate(TaskConfig, data, "test")), 4, 0, actor)


def written(probe: Probe, **settings) -> dict[str, str]:
    config = NewTask(env=KNOWN, name="known", **settings)
    return task_files(config, probe, sizes(probe))


@pytest.fixture
def folder(tmp_path, store, monkeypatch) -> Path:
    """Where `configs/` is to appear."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "new_task.yaml").write_text("episodes: 4\n")
    monkeypatch.chdir(project)
    return project


def new_task(capfd, *arguments: str) -> tuple[int, str, str]:
    code = stage_main("new_task", ["--config", "new_task.yaml", *arguments])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- what is measured ------------------------------------------------------------------------------------------------


def test_a_probe_of_an_environment_that_can_be_worked_out_by_hand():
    probe = probed()
    assert probe.returns.tolist() == [4.0] * 4
    assert probe.lengths.tolist() == [4] * 4
    assert probe.rewards == (1.0, 1.0)
    assert probe.ended == 4
    assert probe.final_keys == {"success": (1.0, 1.0), "crash": (0.0, 0.0), "distance": (10.0, 10.0)}
    assert (probe.limit, probe.reward_threshold, probe.renders, probe.repeatable) == (None, None, False, True)
    # 100, 104, 100, 104, 100
    assert probe.spreads[""].mean == pytest.approx([101.6])
    assert probe.spreads[""].std == pytest.approx([np.sqrt(0.6 * 1.6**2 + 0.4 * 2.4**2)])


def test_what_gymnasium_knows_of_its_own_is_taken_from_it():
    probe = probed("CartPole-v1")
    assert (probe.limit, probe.reward_threshold, probe.renders, probe.repeatable) == (500, 475.0, True, True)
    success = success_of(NewTask(env="CartPole-v1", name="pole"), probe)
    assert (success["return_at_least"], success["known"]) == (475.0, True)


def test_an_environment_that_does_not_end_is_left_and_gets_a_horizon():
    probe = probed(steps=10**9)
    assert probe.ended == 0
    assert set(probe.lengths) == {2000}
    task = validate(TaskConfig, parse_yaml(written(probe)["tasks/known.yaml"], "task"), "task")
    assert task.horizon == 1000


def horizon_written(env: str, by: str | None = None, **kwargs) -> int | None:
    probe = probed(env, by, **kwargs)
    return validate(TaskConfig, parse_yaml(written(probe)["tasks/known.yaml"], "task"), "task").horizon


def test_a_horizon_is_written_wherever_nothing_truncates():
    # every random episode of Endless ends in the middle, and its demonstrator's do; an untrained policy's would not
    assert horizon_written("strange_environments:Endless", "pick") == 1000
    assert horizon_written("strange_environments:Endless") == 1000
    assert horizon_written(KNOWN, steps=700) == 1400  # long ones are not cut in their middle
    assert horizon_written("strange_environments:Line") is None  # was seen to truncate
    assert horizon_written("CartPole-v1") is None  # Gymnasium would


def test_observations_that_are_pythons_own_reach_a_demonstrator_as_what_it_can_look_up():
    for kwargs in ({}, {"mapping": True}):
        assert probed("strange_environments:Plain", "look_up", **kwargs).shown.tolist() == [1.0] * 4


def test_an_environment_that_does_not_repeat_itself_is_found_out_and_never_replayed():
    probe = probed(kind="moody")
    assert not probe.repeatable
    files = written(probe)
    assert parse_yaml(files["known/collect.yaml"], "c")["replay_episodes"] == 0
    assert parse_yaml(files["known/validate.yaml"], "v")["replay_episodes"] == 0
    assert any(
        "WARNING" in line for line in summary(NewTask(env=KNOWN, name="known"), probe, sizes(probe), list(files))
    )


def test_somebody_elses_crash_is_one_line():
    with pytest.raises(BadInput, match=r"cannot be played: ZeroDivisionError: a wheel came off"):
        probed(kind="broken")
    with pytest.raises(BadInput, match=r"cannot be made: AssertionError: no wheels \(strange_environments.py:\d+\)"):
        probed(kind="stillborn")
    with pytest.raises(
        BadInput, match=r"with strange_environments:lost: KeyError: 'the way' \(strange_env.*\); mend it"
    ):
        probed(by="lost")
    with pytest.raises(BadInput, match=r"'strange_environments:bold' answered 2, which is not an action"):
        probed(by="bold")


@pytest.mark.parametrize(("env", "starts"), [(KNOWN, 1), ("CartPole-v1", 4)])
def test_an_environment_that_always_starts_alike_is_found_out(env, starts):
    probe = probed(env)
    assert probe.starts == starts
    told = " ".join(summary(NewTask(env=env, name="known"), probe, sizes(probe), ["a"]))
    assert ("starts with the same observation" in told) == (starts == 1)


@pytest.mark.parametrize("env", ["CartPole-v1", KNOWN])
def test_a_faster_environment_gets_more_steps_and_none_more_than_the_limits(env):
    probe = probed(env)
    budgets = [sizes(replace(probe, steps_per_second=speed)).timesteps for speed in (10.0, 1e4, 1e5, 1e9)]
    assert budgets == sorted(budgets)
    assert budgets[0] == 20_480  # a slow one is not left without any
    assert budgets[-1] <= 307_200
    assert all(budget % 2048 == 0 for budget in budgets)
    minutes = [sizes(replace(probe, steps_per_second=speed)).minutes for speed in (10.0, 1e4, 1e9)]
    assert minutes[0] > 60  # and it is said what that takes
    assert minutes[2] == pytest.approx(10.0, abs=0.5)


def test_few_demonstrations_are_cloned_over_more_epochs_and_evaluations_stay_below_the_training():
    probe = probed(by="odd", kind="obeyed")  # 200 demonstrations of 4 steps: 3.125 batches of 256
    assert (sizes(probe).demonstrations, sizes(probe).cloning_epochs) == (200, 400)  # 640 would do
    assert sizes(replace(probe, shown_steps=40.0)).cloning_epochs == 64  # 2,000 / (8,000 / 256)
    assert sizes(replace(probe, shown_steps=400.0)).cloning_epochs == 30
    slow = sizes(replace(probe, steps_per_second=20.0, limit=60))
    assert (slow.every_steps, slow.evaluation_episodes) == (2048, 20)


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("demonstrator", [None, "module:function"])
@pytest.mark.parametrize("kind", ["sound", "silent"])
def test_every_stage_reads_its_config_and_main_names_them(kind, demonstrator):
    files = written(probed(kind=kind), demonstrator=demonstrator)
    read = {Path(name).stem: parse_yaml(text, name) for name, text in files.items()}
    task = validate(TaskConfig, read.pop("known"), "task")
    for stage, data in read.items():
        validate(STAGE_CONFIGS[stage], data, stage)
        assert data.get("task", "configs/tasks/known.yaml") == "configs/tasks/known.yaml"
    expert = [] if demonstrator else ["train_expert", "promote"]
    assert list(read["main"]["stages"]) == [*expert, "collect", "pretrain", "finetune", "compare"]
    assert set(read) == {
        *expert,
        "collect",
        "validate",
        "playback",
        "pretrain",
        "finetune",
        "evaluate",
        "compare",
        "main",
    }
    seeds = [read[s]["training"]["evaluation"]["seed"] for s in ("train_expert", "finetune") if s in read]
    assert len({*seeds, read["pretrain"]["evaluation"]["seed"]}) == len(seeds) + 1  # what main asks for
    if kind == "sound":
        assert (task.success.info, task.collision.info) == ("success", "crash")
        assert "# metrics: {distance: {info: distance}}" in files["tasks/known.yaml"]
    else:
        assert task.success.return_at_least == pytest.approx(4.4)  # a tenth above the best random return
        assert "A GUESS" in files["tasks/known.yaml"]


def test_success_is_guessed_from_what_the_demonstrator_reaches():
    config = NewTask(env=KNOWN, name="known", demonstrator="strange_environments:odd")
    probe = probed(by="odd", kind="obeyed")
    assert probe.shown.tolist() == [2.0] * 4  # it sees 100, 104, 100, 104
    assert probe.shown_steps == 4.0
    success = success_of(config, probe)
    assert (success["return_at_least"], success["known"]) == (2.0, False)
    assert "strange_environments:odd reaches in nine of ten episodes" in success["why"]
    assert "strange_environments:odd had a return of 2 (2 to 2)" in summary(config, probe, sizes(probe), ["a"])[2]
    text = task_files(config, probe, sizes(probe))["tasks/known.yaml"]
    assert validate(TaskConfig, parse_yaml(text, "task"), "task").success.return_at_least == 2.0
    assert "strange_environments:odd had 2 to 2" in text


def test_where_only_ends_are_rewarded_any_reward_is_success():
    config = NewTask(env=KNOWN, name="known")
    probe = probed(kind="sparse")
    assert probe.rewarded_at_end
    assert success_of(config, probe)["return_at_least"] == 1e-3  # 0.55 would be out of reach
    assert not probed(kind="silent").rewarded_at_end
    never = replace(probe, returns=np.zeros(4))
    assert success_of(config, never)["return_at_least"] > 0  # nothing at all is no success


def test_large_observations_are_scaled_by_what_was_measured_and_small_ones_only_shown():
    large = validate(TaskConfig, parse_yaml(written(probed())["tasks/known.yaml"], "task"), "task")
    (wrapper,) = large.environment.wrappers
    assert wrapper.name == "pipeline.envs.scaling:ScaleObservation"
    assert wrapper.kwargs == {"mean": [101.6], "std": [1.96], "clip": 10.0}
    read_as_it_is = written(probed(), demonstrator="module:function")["tasks/known.yaml"]
    assert "the demonstrator reads them as they are" in read_as_it_is
    assert validate(TaskConfig, parse_yaml(read_as_it_is, "task"), "task").environment.wrappers == ()
    text = written(probed("CartPole-v1"))["tasks/known.yaml"]
    assert validate(TaskConfig, parse_yaml(text, "task"), "task").environment.wrappers == ()
    shown = text.replace("  # wrappers:", "  wrappers:").replace("  #   - {", "    - {")
    (wrapper,) = validate(TaskConfig, parse_yaml(shown, "task"), "task").environment.wrappers
    assert len(wrapper.kwargs["mean"]) == 4


# --- the stage -------------------------------------------------------------------------------------------------------


def test_the_configs_appear_and_the_run_keeps_them(folder, capfd):
    code, out, errors = new_task(capfd, "--env", KNOWN, "--name", "known")
    assert code == 0, errors
    assert "mlflow run . -e main --env-manager local -P config=configs/known/main.yaml" in out
    assert "trains an expert" in out
    assert load_task(folder / "configs/tasks/known.yaml").environment.id == KNOWN
    load(STAGE_CONFIGS["main"], folder / "configs/known/main.yaml")
    (run,) = search(connect(), {Tag.STAGE: "new_task", Tag.TASK: "known"})
    kept = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/configs/tasks/known.yaml")
    assert kept == (folder / "configs/tasks/known.yaml").read_text()
    before = everything_in(folder)
    again, _, errors = new_task(capfd, "--env", KNOWN, "--name", "known")
    assert again == 2
    assert "is not overwritten" in errors
    assert everything_in(folder) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--env", "CartPoel-v1", "--name", "a"], "Did you mean 'CartPole-v1'?"),
        (["--env", "strange_environments:Knwon", "--name", "a"], "Did you mean 'Known'?"),
        (["--env", "no_such_module:Known", "--name", "a"], "is it installed?"),
        (["--env", KNOWN], "'name' is missing"),
        (["--env", KNOWN, "--name", "Not a name"], "name = 'Not a name'"),
        (["--env", KNOWN, "--name", "../../a"], "name = '../../a'"),
        (["--env", KNOWN, "--name", "tasks"], "folder of configs"),
        (["--env", KNOWN, "--name", "a", "--kwargs", "{kind: unbounded}"], "pipeline.envs.limits:LimitAction"),
        (["--env", KNOWN, "--name", "a", "--kwargs", "{kidn: sound}"], "kidn"),
        (["--env", KNOWN, "--name", "a", "--episods", "3"], "Did you mean 'episodes'?"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(folder, capfd, arguments, named):
    code, _, errors = new_task(capfd, *arguments)
    line = errors.strip().splitlines()[-1]
    assert code == 2
    assert line.startswith("error: ")
    assert named in line
    assert everything_in(folder) == ["new_task.yaml"]


def test_bounds_that_are_given_are_in_the_task(folder, capfd):
    arguments = ["--env", KNOWN, "--name", "held", "--kwargs", "{kind: unbounded}", "--wrappers", LIMIT]
    code, _, errors = new_task(capfd, *arguments)
    assert code == 0, errors
    task = load_task(folder / "configs/tasks/held.yaml")
    assert [w.name.rpartition(":")[2] for w in task.environment.wrappers] == ["LimitAction", "ScaleObservation"]
    assert float(Task(task).action_space.high[0]) == 1.0


def test_a_name_that_was_taken_meanwhile_leaves_both_or_none(tmp_path):
    files = {"tasks/a.yaml": "task", "a/main.yaml": "main"}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.yaml").write_text("mine")
    with pytest.raises(BadInput, match="takes no new task"):
        write_new(tmp_path, "a", files)
    assert everything_in(tmp_path) == ["a/mine.yaml"]
    (tmp_path / "a" / "mine.yaml").unlink()
    (tmp_path / "a").rmdir()
    (tmp_path / "tasks" / "a.yaml").write_text("mine")
    with pytest.raises(BadInput, match="takes no new task"):
        write_new(tmp_path, "a", files)
    assert everything_in(tmp_path) == ["tasks/a.yaml"]
    assert (tmp_path / "tasks" / "a.yaml").read_text() == "mine"
    write_new(tmp_path, "b", {"tasks/b.yaml": "task", "b/main.yaml": "main"})
    assert everything_in(tmp_path) == ["b/main.yaml", "tasks/a.yaml", "tasks/b.yaml"]
