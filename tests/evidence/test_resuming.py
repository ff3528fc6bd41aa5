"""A comparison that was interrupted goes on where it was; what is equal is not trained twice, what differs is."""

from dataclasses import replace

import pytest
from project import GROUP

from pipeline.cli import DONE, stage_main
from pipeline.config.loading import load, load_task
from pipeline.config.stages import Finetune
from pipeline.learning.arms import arm_jobs
from pipeline.names import ARMS, Tag
from pipeline.tasks import Task
from pipeline.tracking import content_key
from pipeline.tracking.groups import find_group
from pipeline.tracking.runs import search
from pipeline.tracking.seed_runs import train_logged
from pipeline.tracking.stage_run import open_run
from pipeline.tracking.store import connect


def test_an_interrupted_arm_trains_only_what_is_missing_and_gets_the_same_weights(copied, runs, capsys):
    client = connect()
    lost = client.get_run(runs("finetune_seed", 2)[0])
    client.delete_run(lost.info.run_id)
    stopped = runs("finetune")[0]
    client.set_terminated(stopped, status="FAILED")
    policy = client.get_run(stopped).data.tags["lineage.pretrain_run_id"]
    command = ["--config", str(copied.configs["finetune"]), "--group", GROUP, "--policy", policy]
    trained = set(runs("finetune_seed"))
    assert stage_main("finetune", command) == DONE
    (again,) = set(runs("finetune_seed")) - trained
    tags = client.get_run(again).data.tags
    assert (tags[Tag.SEED], tags[Tag.ARM]) == (lost.data.tags[Tag.SEED], lost.data.tags[Tag.ARM])
    assert tags["policy.weights_digest"] == lost.data.tags["policy.weights_digest"]
    assert "5 trainings with an equal content key were finished before" in capsys.readouterr().out
    group = find_group(client, GROUP, "social_nav")
    assert {arm: [member.seed for member in members] for arm, members in group.arms.items()} == {
        arm: [1, 2, 3] for arm in ARMS
    }
    assert group.finetune.info.run_id != stopped


@pytest.mark.slow
def test_a_training_is_taken_over_from_any_group_unless_something_differs_or_is_known_against_it(
    copied, runs, capsys, monkeypatch
):
    client = connect()
    one = ["--seeds", "[1]", "--control_timesteps", "0", "--training.total_timesteps", "1024"]
    config = ["--config", str(copied.configs["finetune"]), *one]

    def newly_trained(*arguments: str) -> int:
        before = len(search(client, {Tag.STAGE: "baseline_seed"}))
        assert stage_main("baseline", [*config, *arguments]) == DONE
        return len(search(client, {Tag.STAGE: "baseline_seed"})) - before

    assert newly_trained("--group", "first") == 1
    (made,) = runs_of(client, "first")
    assert newly_trained("--group", "second") == 0
    (second,) = search(client, {Tag.STAGE: "baseline", Tag.GROUP: "second"})
    assert second.data.tags["reused.scratch.seed_1"] == made
    assert newly_trained("--reuse", "false") == 1
    capsys.readouterr()
    assert newly_trained("--training.ppo.gamma", "0.9") == 1
    assert (
        "scratch seed 1: run because config differs: training.ppo.gamma = 0.9 (was absent)" in capsys.readouterr().out
    )
    for run in search(client, {Tag.STAGE: "baseline_seed"}):
        client.set_tag(run.info.run_id, Tag.TAINT, "its world was wrong")
    assert newly_trained() == 1
    assert "equal in all, cannot be used: run" in capsys.readouterr().out
    changed = {**content_key.package_code(), "pipeline/learning/ppo.py": "another"}
    monkeypatch.setattr(content_key, "package_code", lambda: changed)
    assert newly_trained() == 1
    assert "scratch seed 1: run because code differs: pipeline/learning/ppo.py (closest: run" in capsys.readouterr().out


def runs_of(client, group: str) -> list[str]:
    return [run.info.run_id for run in search(client, {Tag.STAGE: "baseline_seed", Tag.GROUP: group})]


def test_what_finished_before_an_interruption_stays_finished(store, repository, in_repository):
    config = load(Finetune, "configs/smoke/finetune.yaml")
    config = replace(config, training=replace(config.training, total_timesteps=1024), control_timesteps=0)
    task = Task(load_task(config.task))

    def interrupt_the_second(index, event):
        if index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run("baseline") as run:
        jobs = [arm.job for arm in arm_jobs(config, task, run.folder, None)]
        tags = [{Tag.STAGE: "baseline_seed", Tag.GROUP: "g"} for _ in jobs]
        train_logged(run, jobs, tags, 1, interrupt_the_second)
    client = connect()
    children = client.search_runs([run.experiment_id], "tags.stage = 'baseline_seed'")
    assert {child.data.tags[Tag.SEED]: child.info.status for child in children} == {
        "1": "FINISHED",
        "2": "KILLED",
        "3": "KILLED",
    }
