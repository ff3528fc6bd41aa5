"""A comparison that was interrupted goes on where it was; what is equal is not trained twice, what differs is."""

from dataclasses import replace

import pytest
from one_group import GROUP

from pipeline.cli import DONE, stage_main
from pipeline.config.loading import load, load_task
from pipeline.config.stages import Finetune
from pipeline.learning.arms import arm_jobs
from pipeline.names import ARMS, SEED_STAGES, Tag
from pipeline.tasks import Task
from pipeline.tracking.groups import find_group
from pipeline.tracking.runs import open_run
from pipeline.tracking.store import connect
from pipeline.tracking.training import train_logged
from pipeline.workflow import run_stage


def test_main_under_the_same_name_takes_over_every_finished_stage(copied, runs, capsys):
    before = {stage: runs(stage) for stage in (*SEED_STAGES, "collect", "finetune", "compare")}
    outcome = run_stage("main", str(copied.main_config), {}, {})
    assert {stage: runs(stage) for stage in before} == before
    assert outcome.verdict is not None
    assert outcome.outputs == {"report": before["compare"][0]}
    assert capsys.readouterr().out.count("was finished before in group 'trial'") == 7


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
    assert "5 trainings were finished before in this group" in capsys.readouterr().out
    group = find_group(client, GROUP, "social_nav")
    assert {arm: [member.seed for member in members] for arm, members in group.arms.items()} == {
        arm: [1, 2, 3] for arm in ARMS
    }
    assert group.finetune.info.run_id != stopped


def test_another_setting_a_taint_or_another_commit_is_trained_anew(copied, runs):
    client = connect()
    config = [
        "--config",
        str(copied.configs["finetune"]),
        "--group",
        GROUP,
        "--seeds",
        "[1]",
        "--control_timesteps",
        "0",
    ]

    def newly_trained(*overrides: str) -> int:
        before = len(runs("baseline_seed"))
        assert stage_main("baseline", [*config, *overrides]) == DONE
        return len(runs("baseline_seed")) - before

    assert newly_trained() == 1  # the controls' budget belongs to what both arms share
    assert newly_trained() == 0
    assert newly_trained("--training.ppo.gamma", "0.9") == 1
    client.set_tag(runs("baseline_seed", 1)[0], Tag.TAINT, "its data was quarantined")
    client.set_tag(runs("baseline_seed", 1)[1], Tag.CODE_COMMIT, "0" * 40)
    assert newly_trained() == 1


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
        "2": "FAILED",
        "3": "FAILED",
    }
