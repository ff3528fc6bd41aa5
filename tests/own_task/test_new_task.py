"""`new_task` measures an environment, writes configs that every stage reads, and writes nothing when it refuses."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pytest
from gymnasium import spaces

from pipeline.cli import stage_main
from pipeline.config.loading import load, load_task, parse_yaml, validate
from pipeline.config.stages import STAGE_CONFIGS, NewTask, TrainExpert
from pipeline.config.task import TaskConfig
from pipeline.config.training import AffineFigures
from pipeline.errors import BadInput
from pipeline.names import Tag
from pipeline.play.demonstrators import scripted
from pipeline.play.probing import Probe, probe_environment, seconds_of_an_update
from pipeline.report.task_files import (
    collisions_allowed,
    sizes,
    success_of,
    successes,
    summary,
    target_of,
    task_files,
)
from pipeline.stages.new_task import write_new
from pipeline.tasks import Task
from pipeline.tracking.host import untested
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
    return task_files(config, probe)


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
    config = NewTask(env="CartPole-v1", name="pole")
    success = success_of(config, probe)
    assert success["return_at_least"] == 475.0 and "GUESS" in success["why"]  # it is of a mean over 100 episodes
    target = target_of(config, probe, success)
    assert (target["figure"], target["min"]) == ("return_mean", 475.0)
    files = {name: parse_yaml(text, name) for name, text in task_files(config, probe).items()}
    assert files["tasks/pole.yaml"]["thresholds"] == {"return_mean": {"min": 475.0}}
    assert files["pole/promote.yaml"]["rules"] == [{"scenario_set": "train", "metric": "return_mean", "min": 475.0}]


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
    assert any("WARNING" in line for line in summary(NewTask(env=KNOWN, name="known"), probe, list(files)))


def test_an_environment_that_repeats_itself_only_alone_is_found_out():
    probe = probed("strange_environments:Shared")
    assert probe.alone and not probe.repeatable
    told = " ".join(summary(NewTask(env=KNOWN, name="known"), probe, ["a"]))
    assert "when another environment was played beside it (np.random" in told
    assert "beside it" not in " ".join(summary(NewTask(env=KNOWN, name="known"), probed(kind="moody"), ["a"]))


def test_what_no_task_file_can_name_is_no_figure_and_actions_may_have_two_axes():
    assert set(probed("strange_environments:Named").final_keys) == {"is_success"}
    assert probed("strange_environments:Plate").updating > 0


def test_noise_that_a_demonstrator_does_not_bear_is_not_proposed():
    """Of noise s, P(|N(0, s)| < 0.1) is borne: 0.38 of it at 0.2, 0.68 at 0.1; half is enough."""
    probe = probed("strange_environments:Rope", "balance")
    assert list(probe.noisy) == [0.2, 0.1] and probe.noise == 0.1
    for std, share in ((0.2, 0.38), (0.1, 0.68)):
        assert abs(probe.noisy[std].returned / 40 - share) < 4 * np.sqrt(share * (1 - share) / 160)  # four episodes
    collect = written(probe, demonstrator="strange_environments:balance")["known/collect.yaml"]
    assert parse_yaml(collect, "c")["noise"] == {"std": 0.1}
    assert "# strange_environments:balance returns " in collect and ", 40 without." in collect
    told = summary(NewTask(env=KNOWN, name="known", demonstrator="strange_environments:balance"), probe, ["a"])
    (line,) = [line for line in told if line.startswith("  records under noise of 0.1: it returns ")]
    assert " under 0.2, " in line and line.endswith(" under 0.1")  # the next one begins anew
    assert probed("strange_environments:Rope", "balance", width=0.001).noise == 0.0
    # a return that is kept is not enough where success is lost
    told_of = probed("strange_environments:Rope", "balance", width=0.01, told=True)
    assert [came.success for came in told_of.noisy.values()] == [0.0, 0.0, 0.0]
    assert told_of.noise == 0.0 and told_of.noisy[0.2].returned > 30
    assert probed("strange_environments:Rope").noise == 0.2  # nobody demonstrates: what is usual
    assert probed(by="odd").noisy == {} and probed(by="odd").noise == 0.1  # no better than random play


def test_observations_that_leave_their_space_are_told():
    probe = probed("strange_environments:Narrow")
    assert probe.outside.startswith("element 1 was -") and probe.outside.endswith("declared is 0 to 0")
    told = summary(NewTask(env=KNOWN, name="known"), probe, ["a"])
    assert any("WARNING: observations leave their space: element 1 was" in line for line in told)
    assert probed().outside == ""


def test_rewards_and_observations_that_are_no_numbers_are_refused():
    with pytest.raises(
        BadInput, match=r"environment rewards must be finite, as float32; the episode with seed \d+ has nan"
    ):
        probed(kind="unpaid")
    with pytest.raises(BadInput, match=r"environment observations must be finite, .* has inf"):
        probed(kind="dizzy")
    with pytest.raises(BadInput, match=r"environment observations must be finite, as float32; .* has 1e\+300"):
        probed("strange_environments:Far")


def test_pictures_that_are_declared_but_cannot_be_drawn_are_told_and_asked_for_nowhere():
    probe = probed("strange_environments:Undrawable")
    assert not probe.renders
    told = " ".join(summary(NewTask(env=KNOWN, name="known"), probe, ["a"]))
    assert "pictures that cannot be drawn: OSError: no screen (strange_environments.py:" in told
    assert parse_yaml(written(probe)["known/compare.yaml"], "c")["playback_episodes"] == 0


def test_numbers_of_any_kind_are_scaled_where_they_are_large():
    assert list(scaling_of_the_expert(probed("strange_environments:Bytes")).observations) == ["all"]
    shown = probed("strange_environments:Bytes", "still")
    config = NewTask(env=KNOWN, name="known", demonstrator="strange_environments:still")
    told = " ".join(summary(config, shown, ["a"]))
    assert "large" not in told  # clones scale by what is shown


def test_somebody_elses_crash_is_one_line():
    with pytest.raises(BadInput, match=r"cannot be played .*, step 2\): ZeroDivisionError: a wheel came off"):
        probed(kind="broken")
    with pytest.raises(BadInput, match=r"cannot be made: AssertionError: no wheels \(strange_environments.py:\d+\)"):
        probed(kind="stillborn")
    with pytest.raises(
        BadInput, match=r"'strange_environments:lost' cannot act: KeyError: 'the way' \(strange_env.*\); mend it"
    ):
        probed(by="lost")
    with pytest.raises(BadInput, match=r"'strange_environments:bold' answered 2, which is not an action"):
        probed(by="bold")


@pytest.mark.parametrize(("env", "starts"), [(KNOWN, 1), ("CartPole-v1", 4)])
def test_an_environment_that_always_starts_alike_is_found_out(env, starts):
    probe = probed(env)
    assert probe.starts == starts
    told = " ".join(summary(NewTask(env=env, name="known"), probe, ["a"]))
    assert ("starts with the same observation" in told) == (starts == 1)


@pytest.mark.parametrize("env", ["CartPole-v1", KNOWN])
def test_a_faster_environment_gets_more_steps_and_none_more_than_the_limits(env):
    probe = replace(probed(env), making=0.01, drawing=0.01, updating=0.002)
    budgets = [sizes(replace(probe, steps_per_second=speed)).timesteps for speed in (10.0, 1e4, 1e5, 1e9)]
    assert budgets == sorted(budgets)
    assert budgets[0] == 20_480  # a slow one is not left without any
    assert budgets[-1] <= 307_200
    assert all(budget % 2048 == 0 for budget in budgets)
    minutes = [sizes(replace(probe, steps_per_second=speed)).minutes for speed in (10.0, 1e4, 1e9)]
    assert minutes[0] > 60  # and it is said what that takes
    assert 7 < minutes[2] < 12


def test_making_drawing_and_learning_from_pictures_are_in_the_minutes():
    probe = replace(probed("CartPole-v1"), steps_per_second=1e4, making=0.0, drawing=0.0, updating=0.001)
    minutes = sizes(probe).minutes
    assert sizes(replace(probe, making=3.0)).minutes - minutes == pytest.approx(6.5 * 16 * 3 / 60)
    assert sizes(replace(probe, drawing=0.1)).minutes - minutes == pytest.approx(6 * 500 * 0.1 / 60)
    assert sizes(replace(probe, drawn=None)).minutes < minutes  # no films
    pictures = sizes(replace(probe, updating=1.0))
    assert pictures.minutes > 120 and pictures.duration == f"{pictures.minutes / 60:.0f} hours"
    shown = replace(probe, shown=probe.returns, shown_steps=500.0)
    assert sizes(shown).minutes < minutes  # no experts


def test_learning_from_pictures_is_measured_to_be_slower():
    pictures = seconds_of_an_update(spaces.Box(0, 255, (3, 64, 64), np.uint8), spaces.Discrete(2))
    assert pictures > 3 * seconds_of_an_update(spaces.Box(-1, 1, (4,)), spaces.Discrete(2)) > 0
    mapping = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,))})
    assert seconds_of_an_update(mapping, spaces.Box(-1, 1, (2,))) > 0


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
        assert '# metrics: {"distance": {info: "distance"}}' in files["tasks/known.yaml"]
    else:
        assert task.success.return_at_least == pytest.approx(4.4)  # a tenth above the best random return
        assert "A GUESS" in files["tasks/known.yaml"]


def test_success_is_guessed_from_what_the_demonstrator_reaches():
    config = NewTask(env=KNOWN, name="known", demonstrator="strange_environments:odd")
    probe = probed(by="odd", kind="obeyed")
    assert probe.shown.tolist() == [2.0] * 4  # it sees 100, 104, 100, 104
    assert probe.shown_steps == 4.0
    success = success_of(config, probe)
    assert success["return_at_least"] == 2.0 and "GUESS" in success["why"]
    assert "strange_environments:odd reaches it in 4 of 4 episodes (95 % interval 51 % to 100 %)" in success["why"]
    assert "strange_environments:odd had a return of 2 (2 to 2)" in summary(config, probe, ["a"])[2]
    text = task_files(config, probe)["tasks/known.yaml"]
    assert validate(TaskConfig, parse_yaml(text, "task"), "task").success.return_at_least == 2.0
    assert "strange_environments:odd had 2 to 2" in text


RETURNS = {
    "constant": np.full(20, 123.456),
    "summed": np.full(20, sum([0.1] * 20)),
    "spread": np.random.default_rng(0).normal(200.0, 60.0, 20),
    "often failing": np.where(np.arange(20) < 9, -300.0, 250.0),
    "negative": np.random.default_rng(1).normal(-1234.5678, 3.0, 20),
    "one bit": (np.arange(20) % 2).astype(float),
}


@pytest.mark.parametrize("threshold", [None, 8.0, 1e9, -1e9])
@pytest.mark.parametrize("kind", RETURNS)
def test_no_target_is_written_that_the_demonstrator_itself_misses(kind, threshold):
    config = NewTask(env=KNOWN, name="known", demonstrator="strange_environments:odd")
    probe = replace(
        probed(by="odd", kind="silent"),
        returns=np.full(20, -40.0),
        shown=RETURNS[kind],
        shown_finals=({},) * 20,
        reward_threshold=threshold,
    )
    success = success_of(config, probe)
    target = target_of(config, probe, success)
    reached = successes(probe, success).mean()
    if kind == "often failing":
        assert (reached, success["return_at_least"]) == (0.55, 250.0)  # -300 is no success: random play has more
    else:
        assert reached >= 0.9
    assert {"success_rate": reached, "return_mean": RETURNS[kind].mean()}[target["figure"]] >= target["min"]
    assert (target["figure"] == "return_mean") == (threshold is not None and threshold <= RETURNS[kind].mean())
    told = " ".join(summary(config, probe, ["a"]))
    assert ("is above what strange_environments:odd reaches" in told) == (threshold == 1e9 or
        (threshold == 8.0 and RETURNS[kind].mean() < 8.0))  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 1.0])
def test_a_target_of_a_key_is_what_the_demonstrator_reaches_of_it(share):
    config = NewTask(env=KNOWN, name="known", demonstrator="strange_environments:odd")
    finals = tuple({"success": float(i < 20 * share), "crash": float(i >= 20 * share)} for i in range(20))
    probe = replace(probed(by="odd"), returns=np.zeros(20), shown=np.arange(20.0), shown_finals=finals)
    success = success_of(config, probe)
    target = target_of(config, probe, success)
    told = " ".join(summary(config, probe, ["a"]))
    if share:
        assert (target["figure"], target["min"]) == ("success_rate", {0.5: 0.45, 0.95: 0.85, 1.0: 0.9}[share])
    else:
        assert target["figure"] == "return_mean" and target["min"] < 9.5
    assert ("strange_environments:odd never succeeds in 20 episodes" in told) == (share == 0)
    allowed = collisions_allowed(probe, "crash")
    assert allowed == {0.0: 1.0, 0.5: 0.55, 0.95: 0.05, 1.0: 0.05}[share] and allowed >= 1 - share - 1e-9
    assert collisions_allowed(probe, None) is None


def test_a_demonstrator_that_is_no_better_than_random_play_is_told():
    config = NewTask(env=KNOWN, name="known", demonstrator="strange_environments:odd")
    probe = replace(probed(by="odd"), returns=np.arange(20.0))
    for shown, worse in ((np.arange(20.0), True), (np.arange(20.0)[::-1], True), (np.arange(20.0) + 0.1, False)):
        found = replace(probe, shown=shown, shown_finals=({"success": 1.0},) * 20)
        told = " ".join(summary(config, found, ["a"]))
        assert ("is not shown to be better than random play" in told) == worse


def test_packages_in_other_versions_than_were_tested_are_told_in_one_line(tmp_path):
    assert all(" (tested: " in package for package in untested())  # those of this very environment
    pins = tmp_path / "constraints.txt"
    pins.write_text("# together\nnumpy==0.0.1\nnot-installed==1.0\n\ngymnasium==" + version("gymnasium") + "\n")
    found = untested(pins)
    assert found == (f"numpy {version('numpy')} (tested: 0.0.1)",)
    assert untested(tmp_path / "nowhere.txt") == ()
    config, probe = NewTask(env=KNOWN, name="known"), probed()
    (told,) = [line for line in summary(config, probe, ["a"], found * 5) if "versions" in line]
    assert "(tested: 0.0.1) and 2 more; see docs/own-task.md" in told


def test_where_only_ends_are_rewarded_any_reward_is_success():
    config = NewTask(env=KNOWN, name="known")
    probe = probed(kind="sparse")
    assert probe.rewarded_at_end
    assert success_of(config, probe)["return_at_least"] == 1e-3  # 0.55 would be out of reach
    assert not probed(kind="silent").rewarded_at_end
    never = replace(probe, returns=np.zeros(4))
    assert success_of(config, never)["return_at_least"] > 0  # nothing at all is no success


def scaling_of_the_expert(probe):
    """That the written config of train_expert gives; no wrapper does it."""
    files = written(probe)
    assert validate(TaskConfig, parse_yaml(files["tasks/known.yaml"], "task"), "task").environment.wrappers == ()
    return validate(TrainExpert, parse_yaml(files["known/train_expert.yaml"], "expert"), "expert").scaling


def test_an_expert_scales_large_observations_by_what_was_measured_and_leaves_small_ones():
    figures = scaling_of_the_expert(probed()).observations
    assert figures == {"all": validate(AffineFigures, {"offset": 101.6, "scale": 1.96}, "by hand")}
    assert scaling_of_the_expert(probed("CartPole-v1")).observations == {}
    by_a_script = written(probed(), demonstrator="module:function")
    assert not any("scaling:" in text for text in by_a_script.values())  # clones scale, by what the demonstrator shows


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
        (
            ["--env", KNOWN, "--name", "Not a name"],
            "name = 'Not a name': a name is a lower-case letter of a to z, then",
        ),
        (["--env", "Nothing", "--name", "a"], "doesn't exist."),
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


def test_names_and_folders_that_yaml_would_read_as_something_else_are_texts(folder, capfd):
    for name in ("null", "true"):
        code, out, errors = new_task(capfd, "--env", KNOWN, "--name", name, "--folder", "mine: #1")
        assert code == 0, errors
        assert load_task(folder / f"mine: #1/tasks/{name}.yaml").name == name
        stages = parse_yaml((folder / f"mine: #1/{name}/main.yaml").read_text(), "main")["stages"]
        assert stages["compare"] == f"mine: #1/{name}/compare.yaml"
        assert f"-P config='mine: #1/{name}/main.yaml'" in out


def test_bounds_that_are_given_are_in_the_task(folder, capfd):
    arguments = ["--env", KNOWN, "--name", "held", "--kwargs", "{kind: unbounded}", "--wrappers", LIMIT]
    code, _, errors = new_task(capfd, *arguments)
    assert code == 0, errors
    task = load_task(folder / "configs/tasks/held.yaml")
    assert [w.name.rpartition(":")[2] for w in task.environment.wrappers] == ["LimitAction"]
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
