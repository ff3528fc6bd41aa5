"""The content key: what changes a result changes the key and is named; what does not, does not."""

import json
import os
import shutil
from dataclasses import replace

from pipeline.config.loading import load, load_task, to_data, validate
from pipeline.config.stages import Collect, Finetune
from pipeline.config.task import TaskConfig
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.processor import DISPATCH
from pipeline.policies import build_policy, save_policy
from pipeline.tracking import content_key as module
from pipeline.tracking import host
from pipeline.tracking.content_key import code_behind, content_key, package_code, report_code, training_key

TASK = {
    "name": "pole",
    "environment": {"id": "CartPole-v1"},
    "success": {"return_at_least": 100},
    "thresholds": {"success_rate": {"min": 0.9}},
    "scenarios": {"easy": {}, "hard": {}},
    "scenario_sets": {"train": {"easy": 1, "hard": 1}},
}


def task(**changes) -> TaskConfig:
    return validate(TaskConfig, {**TASK, **changes}, "test")


def key_of(data, a_task=None, dataset="d1", threads=1):
    settings = to_data(validate(Finetune, data, "test"))
    return content_key(settings, a_task or task(), {"dataset": dataset} if dataset else {}, threads)


def said(before, now) -> list[str]:
    return [difference.sentence() for difference in now.differences(before)]


BASE = {"task": "somewhere/pole.yaml", "seeds": [1, 2], "training": {"learning_rate": {"initial": 0.001}}}


def test_a_setting_an_input_or_a_thread_that_differs_is_named():
    base = key_of(BASE)
    assert said(base, key_of({**BASE, "seeds": [1, 3]})) == ["config differs: seeds = [1, 3] (was [1, 2])"]
    rate = {**BASE, "training": {"learning_rate": {"initial": 0.002}}}
    assert said(base, key_of(rate)) == ["config differs: training.learning_rate.initial = 0.002 (was 0.001)"]
    assert said(base, key_of(BASE, task(horizon=50))) == ["task differs: horizon = 50 (was null)"]
    assert said(base, key_of(BASE, dataset="d2")) == ["input differs: dataset"]
    assert said(base, key_of(BASE, dataset=None)) == ["input differs: dataset (gone)"]
    assert said(base, key_of(BASE, threads=2)) == ["machine differs: threads = 2 (was 1)"]
    assert key_of(BASE, threads=2).digest != base.digest


def test_the_kind_of_processor_is_in_it_and_what_makes_libraries_take_kernels_of_another(monkeypatch):
    for name in DISPATCH:
        monkeypatch.delenv(name, raising=False)
    base = key_of(BASE)
    kind = base.ingredients["machine"]
    assert base.processor == f"{kind['processor']} {kind['microarchitecture']}, {kind['instructions']}"
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    told = key_of(BASE)
    assert told.processor == f"{base.processor}, MKL_CBWR=COMPATIBLE"
    assert said(base, told) == ["machine differs: MKL_CBWR = COMPATIBLE (was absent)"]


def test_settings_that_decide_nothing_are_not_in_it(tmp_path):
    base = key_of(BASE)
    for other in (
        {"task": "elsewhere.yaml"},
        {"workers": 7},
        {"reuse": False},
        {"final_episodes": 200},
    ):
        assert key_of({**BASE, **other}).digest == base.digest, other
    reordered = dict(reversed([(key, value) for key, value in TASK.items()]))
    assert key_of(dict(reversed(BASE.items())), validate(TaskConfig, reordered, "test")).digest == base.digest
    minari = {"task": "t", "minari": {"path": "here", "scenario": "easy"}}
    there = {"task": "t", "minari": {"path": "there", "scenario": "easy"}}
    keys = [content_key(to_data(validate(Collect, c, "test")), task(), {"minari": "m"}) for c in (minari, there)]
    assert keys[0].digest == keys[1].digest


def test_the_order_of_scenarios_in_a_set_decides_who_plays_which_episode_and_counts():
    other = task(scenario_sets={"train": {"hard": 1, "easy": 1}})
    assert said(key_of(BASE), key_of(BASE, other)) == [
        "task differs: scenario_sets.train: order = hard, easy (was easy, hard)"
    ]


def test_a_comment_another_path_and_a_newer_file_change_nothing(tmp_path, in_repository):
    for name, text in (("a.yaml", "seeds: [4]\ntask: t.yaml\n"), ("b.yaml", "# why\ntask:   t.yaml\nseeds: [ 4 ]\n")):
        (tmp_path / name).write_text(text)
    os.utime(tmp_path / "b.yaml", (1, 1))
    first, second = (to_data(load(Finetune, tmp_path / name)) for name in ("a.yaml", "b.yaml"))
    assert content_key(first, task(), {}).digest == content_key(second, task(), {}).digest


def test_the_content_of_snqi_files_counts_and_their_place_and_layout_do_not(tmp_path, in_repository, repository):
    social = load_task("configs/tasks/social_nav.yaml")
    for name in ("weights", "baseline"):
        content = json.loads((repository / f"configs/social_nav/snqi_{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps(dict(reversed(content.items())), indent=7))
    moved = replace(social, snqi=replace(social.snqi, weights=f"{tmp_path}/weights.json"))
    moved = replace(moved, snqi=replace(moved.snqi, baseline=f"{tmp_path}/baseline.json"))
    base = key_of(BASE, social)
    assert key_of(BASE, moved).digest == base.digest
    weights = json.loads((tmp_path / "weights.json").read_text())
    (tmp_path / "weights.json").write_text(json.dumps({**weights, "jerk": weights["jerk"] + 0.1}))
    assert said(base, key_of(BASE, moved)) == ["input differs: snqi.weights"]


def test_a_package_of_another_version_is_named(monkeypatch):
    base = key_of(BASE)
    monkeypatch.setattr(module, "installed", lambda name: "9.9" if name == "torch" else host.installed(name))
    (sentence,) = said(base, key_of(BASE))
    assert sentence.startswith("package differs: torch = 9.9 (was 2.")
    monkeypatch.undo()
    assert base.ingredients["package"].items() <= host.environment_record()["packages"].items()


def test_code_of_the_package_counts_file_by_file_but_not_its_comments(tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(module.ROOT / "statistics", folder)
    package_code.cache_clear()
    base = dict(package_code(folder))
    assert base and all(name.startswith("pipeline/") for name in base)
    file = folder / "aggregate.py"
    file.write_text("# a remark\n\n" + file.read_text())
    os.utime(file, (1, 1))
    package_code.cache_clear()
    assert dict(package_code(folder)) == base
    file.write_text(file.read_text() + "\nCHANGED = 1\n")
    package_code.cache_clear()
    now = dict(package_code(folder))
    assert {name for name in base if base[name] != now[name]} == {"pipeline/aggregate.py"}
    package_code.cache_clear()


def test_what_a_report_looks_like_decides_no_training(tmp_path):
    assert {"pipeline/gate.py", "pipeline/learning/ppo.py", "pipeline/envs/episodes.py"} <= package_code().keys()
    assert not [name for name in package_code() if "tracking/" in name]
    assert not [name for name in package_code() if "report/" in name or not name.endswith((".py", ".json"))]
    folder = tmp_path / "pipeline"
    for room in ("report", "tracking"):
        shutil.copytree(module.ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "rules.py").write_text("LIMIT = 1\n")
    code, looks = dict(package_code(folder)), report_code(folder)
    assert list(code) == ["pipeline/rules.py"] and looks == report_code()
    css = folder / "report" / "templates" / "page.css"
    css.write_text(css.read_text() + "body { color: teal }")
    package_code.cache_clear()
    report_code.cache_clear()
    assert dict(package_code(folder)) == code and report_code(folder) != looks
    looks, bill = report_code(folder), folder / "tracking" / "groups.py"
    bill.write_text(bill.read_text() + "NO_EXPERT = ()\n")
    report_code.cache_clear()
    assert dict(package_code(folder)) == code and report_code(folder) != looks


def test_code_of_a_users_modules_counts_with_all_that_they_import(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_world.py").write_text("import numpy\nfrom my_rules.push import force\nclass World: ...\n")
    (tmp_path / "my_rules").mkdir()
    (tmp_path / "my_rules" / "__init__.py").write_text("raise RuntimeError('nothing is imported')\n")
    (tmp_path / "my_rules" / "push.py").write_text("from . import friction\nforce = 1\n")
    (tmp_path / "my_rules" / "friction.py").write_text("mu = 0.1\n")
    files, packages = code_behind(["my_world:World"])
    assert set(files) == {"my_world", "my_rules", "my_rules.push", "my_rules.friction"}
    assert set(packages) == {"numpy"}
    there = task(environment={"id": "my_world:World"})
    base = key_of(BASE, there)
    (tmp_path / "my_rules" / "friction.py").write_text("mu = 0.1  # measured\n")
    assert key_of(BASE, there).digest == base.digest
    (tmp_path / "my_rules" / "friction.py").write_text("mu = 0.2\n")
    assert said(base, key_of(BASE, there)) == ["code differs: my_rules.friction"]


def test_a_registered_environment_counts_by_the_version_of_its_package():
    assert "gymnasium" in key_of(BASE).ingredients["package"]
    assert code_behind(["gymnasium.envs.classic_control.cartpole:CartPoleEnv"])[1].keys() == {"gymnasium"}


def test_a_training_is_its_job_and_its_initial_policy_wherever_both_lie(tmp_path):
    from gymnasium import spaces

    config = validate(Finetune, BASE, "test")
    job = TrainingJob(task(), config.training, 1, "here")
    base = training_key(job)
    assert training_key(replace(job, output="there")).digest == base.digest
    assert said(base, training_key(replace(job, seed=2))) == ["config differs: seed = 2 (was 1)"]
    assert said(base, training_key(replace(job, learning_rate_zero=True, total_timesteps=job.budget))) == [
        "config differs: learning_rate_zero = true (was false)"
    ]
    box, actions = spaces.Box(-1.0, 1.0, (4,)), spaces.Discrete(2)
    starts = []
    for place, seed in (("a", 1), ("b", 1), ("c", 2)):
        save_policy(build_policy(box, actions, config.training.network, seed), tmp_path / place, {})
        warm = replace(job, initial_policy=str(tmp_path / place), warm_start=config.warm_start)
        starts.append(training_key(warm))
    assert starts[0].digest == starts[1].digest != base.digest
    assert said(starts[0], starts[2]) == ["input differs: initial policy"]
