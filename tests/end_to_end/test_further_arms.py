"""More than two arms: trained by `finetune` from the same clones, ranked by `compare`."""

import json
from pathlib import Path

import pytest
import yaml
from project import GROUP, mlflow_run

from pipeline.cli import stage_main
from pipeline.config.stages import StageConfigs
from pipeline.names import ARMS, CONFIG_PARAM_PREFIX, Arm, Artifact, Metric, Tag, lineage_run_tag
from pipeline.tracking import lineage
from pipeline.tracking.groups import read_evaluations
from pipeline.tracking.runs import metric_history, read_text_artifact, search
from pipeline.tracking.store import connect

STAGES_OF_MAIN = StageConfigs.__dataclass_fields__
SHORT = ("--training.total_timesteps", "1024", "--control_timesteps", "0", "--group", "arms", "--seeds", "[1, 2, 3]")
ALL = {"clone", "naive", "residual", "sac", "sac_demos", "few", Arm.PRETRAINED}


@pytest.fixture
def with_all_arms(changeable, projects) -> Path:
    """A config of `main` beside a store that has everything up to the clones."""
    stages = {**{stage: str(path) for stage, path in projects[0].configs.items() if stage in STAGES_OF_MAIN}}
    stages["finetune"] = "configs/smoke/arms/finetune.yaml"
    overrides = {"compare.playback_episodes": "0"}
    config = {"stages": stages, "group": "arms", "finetune_failed_clones": True, "overrides": overrides}
    path = changeable / "main.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_every_arm_that_ships_goes_through_main_to_one_report(with_all_arms, changeable, capfd):
    ended = mlflow_run(changeable, "main")
    assert ended.code in (0, 1), ended.err
    client = connect()
    trained = search(client, {Tag.GROUP: "arms", Tag.STAGE: "finetune_seed"})
    assert sorted(run.data.tags[Tag.ARM] for run in trained) == sorted([*ALL] * 3)
    (compared,) = search(client, {Tag.GROUP: "arms", Tag.STAGE: "compare"})
    report = json.loads(read_text_artifact(client, compared.info.run_id, f"{Artifact.REPORT}/report.json"))
    assert {one["arm"] for one in report["comparison"]["ranking"]} == ALL
    page = read_text_artifact(client, compared.info.run_id, f"{Artifact.REPORT}/report.md")
    assert "### Which arm needs the fewest steps" in page
    of = {(run.data.tags[Tag.ARM], run.data.tags[Tag.SEED]): run for run in trained}
    # the clone alone stays what it was, and the residual policy begins as it
    clone, residual = (read_evaluations(client, of[arm, "1"])["evaluations"] for arm in ("clone", "residual"))
    assert all(point["figures"] == clone[0]["figures"] for point in clone)
    assert residual[0] == clone[0]
    assert len({run.data.metrics[Metric.ENVIRONMENT_STEPS] for run in trained}) == 1  # the same for every arm
    # SAC learns twice after each of 16 environments' steps beyond the first 100; made again, it is the same
    rlpd = of["sac_demos", "1"]
    assert rlpd.data.metrics[Metric.GRADIENT_STEPS] == 2 * (1024 - 96) // 16
    assert stage_main("reproduce", ["--config", "configs/reproduce.yaml", "--run", rlpd.info.run_id]) == 0
    # clones of fewer episodes were made by main, from a part of the dataset, and everything says where they come from
    few, whole = (of[arm, "1"].data.tags for arm in ("few", Arm.PRETRAINED))
    pretrain = client.get_run(few[lineage_run_tag("pretrain")])
    assert pretrain.data.params[f"{CONFIG_PARAM_PREFIX}episodes"] == "12"
    assert pretrain.info.run_id != whole[lineage_run_tag("pretrain")]
    assert few[lineage_run_tag("dataset")] == whole[lineage_run_tag("dataset")]
    named = {run.info.run_id for run in lineage.derived(client, pretrain.info.run_id)}
    assert {of["few", "1"].info.run_id, compared.info.run_id} <= named
    assert of[Arm.PRETRAINED, "1"].info.run_id not in named
    assert pretrain.info.run_id in {n.run_id for n in lineage.trace(client, compared.info.run_id, up=True).nodes}
    # the same again trains nothing
    capfd.readouterr()
    assert stage_main("main", ["--config", str(with_all_arms)]) in (0, 1)
    said = capfd.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("---") and "reused" not in line] == []
    assert "--- pretrain 12 episodes: reused" in said
    assert len(search(client, {Tag.GROUP: "arms", Tag.STAGE: "finetune_seed"})) == len(trained)


def test_a_dataset_too_small_for_an_arm_is_told_before_anything_is_cloned(with_all_arms, capfd):
    (recorded,) = search(connect(), {Tag.STAGE: "collect"}, limit=1)
    few = f"{{few: {{warm_start: adaptive, dataset: {recorded.info.run_id}, episodes: 100000}}}}"
    before = len(search(connect(), {Tag.STAGE: "pretrain"}, status=None))
    assert stage_main("main", ["--config", str(with_all_arms), "--finetune.arms", few]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert "episodes = 100000 is more than dataset" in line
    assert len(search(connect(), {Tag.STAGE: "pretrain"}, status=None)) == before


def test_an_arm_whose_clones_nobody_made_is_refused(stage):
    code, _, errors = stage("finetune", *SHORT, "--arms", "{few: {warm_start: adaptive, episodes: 7}}")
    assert code == 2
    assert "arm 'few': no pretrain with the settings of run" in errors
    assert "-P episodes=7" in errors


@pytest.mark.slow
def test_a_fine_tuned_policy_is_fine_tuned_again_and_compared(stage):
    (before,) = search(
        connect(), {Tag.GROUP: GROUP, Tag.STAGE: "finetune_seed", Tag.ARM: Arm.PRETRAINED, Tag.SEED: "1"}
    )
    start = before.info.run_id
    again = ("--training.total_timesteps", "1024", "--control_timesteps", "0", "--group", "again", "--policy", start)
    for arm in ("finetune", "baseline"):
        code, _, errors = stage(arm, *again)
        assert code == 0, errors
    trained = search(connect(), {Tag.GROUP: "again", Tag.STAGE: "finetune_seed"})
    assert len(trained) == 3
    for run in trained:
        tags = run.data.tags
        assert tags[lineage_run_tag("policy")] == start
        assert tags[lineage_run_tag("pretrain")] == before.data.tags[lineage_run_tag("pretrain")]
    code, _, errors = stage("compare", "--group", "again", "--playback_episodes", "0")
    assert code in (0, 1), errors
    (compared,) = search(connect(), {Tag.GROUP: "again", Tag.STAGE: "compare"})
    once, twice = (
        search(connect(), {Tag.GROUP: group, Tag.STAGE: "compare"})[0].data.metrics["bill/upfront_steps"]
        for group in (GROUP, "again")
    )
    assert twice == once + before.data.metrics[Metric.ENVIRONMENT_STEPS]  # the first fine-tuning is on the bill
    page = read_text_artifact(connect(), compared.info.run_id, f"{Artifact.REPORT}/report.md")
    assert f"policy of run {start}" in page


@pytest.mark.slow
def test_a_training_is_extended_when_its_budget_is_raised_and_says_so_where_it_cannot(stage):
    def trained(name, group, steps, *more):
        asked = ("--training.total_timesteps", steps, "--seeds", "[1]", "--control_timesteps", "0", "--group", group)
        code, out, errors = stage(name, *asked, *more)
        assert code == 0, errors
        (run,) = search(connect(), {Tag.GROUP: group, Tag.STAGE: f"{name}_seed"})
        return run, out

    scratch = {Tag.STAGE: "baseline_seed", Tag.ARM: Arm.SCRATCH, Tag.SEED: "1"}
    (short,) = search(connect(), {Tag.GROUP: GROUP, **scratch})
    longer, said = trained("baseline", "longer", "2560")
    assert f"scratch seed 1: goes on from the last checkpoint of run {short.info.run_id}" in said
    assert longer.data.tags[Tag.EXTENDS] == short.info.run_id
    at_once, _ = trained("baseline", "at-once", "2560", "--reuse", "false")
    assert Tag.EXTENDS not in at_once.data.tags
    for tag in (Tag.POLICY_DIGEST, Tag.LAST_POLICY_DIGEST, Tag.WEIGHTS_DIGEST, Tag.CONTENT_KEY):
        assert longer.data.tags[tag] == at_once.data.tags[tag]
    curves = [metric_history(connect(), run.info.run_id, "eval/return_mean") for run in (longer, at_once)]
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[0]] == [0, 1024, 2048, 2560]
    assert longer.data.metrics[Metric.ENVIRONMENT_STEPS] == 2560
    warm, said = trained("finetune", "longer", "2560")
    assert "pretrained seed 1: goes on from the last checkpoint of run" in said  # an adaptive start knows no budget
    at_once, _ = trained("finetune", "at-once", "2560", "--reuse", "false")
    assert warm.data.tags[Tag.LAST_POLICY_DIGEST] == at_once.data.tags[Tag.LAST_POLICY_DIGEST]
    falling = ("--training.learning_rate", "{initial: 1.0e-3, final: 0.0}")
    trained("baseline", "falling", "1024", *falling)
    anew, said = trained("baseline", "anew", "2048", *falling)
    assert "scratch seed 1: begins anew, though run" in said
    assert "training.learning_rate falls over the whole budget" in said
    assert Tag.EXTENDS not in anew.data.tags


def test_an_arm_that_every_comparison_has_cannot_be_named_again(stage):
    for name in ARMS:
        code, _, errors = stage("finetune", *SHORT, "--arms", f"{{{name}: {{warm_start: adaptive}}}}")
        assert code == 2
        assert f"'{name}' is an arm of every comparison" in errors
