"""`main` takes over what is finished and sound, says so, and does the rest again for a reason that it names."""

import json
import sqlite3

import pytest
from project import GROUP

from pipeline import query
from pipeline.errors import BadInput
from pipeline.names import ARMS, OUTPUT_PREFIX, SEED_STAGES, Artifact, Gate, Quality, Tag, VersionTag
from pipeline.stages import run_stage
from pipeline.tracking.groups import find_group
from pipeline.tracking.reuse import refuse_unsound
from pipeline.tracking.runs import read_text_artifact, search
from pipeline.tracking.store import connect

STAGES = ("train_expert", "promote", "collect", "pretrain", "baseline", "finetune", "compare")


def the_run(stage: str):
    return search(connect(), {Tag.STAGE: stage}, limit=1)[0]


def counted() -> dict[str, int]:
    return {stage: len(search(connect(), {Tag.STAGE: stage}, status=None)) for stage in (*STAGES, *SEED_STAGES)}


def test_a_second_main_reuses_every_stage_and_ends_with_the_same_report(copied, tmp_path, capsys):
    before, report = counted(), the_run("compare").info.run_id
    unnamed = tmp_path / "main.yaml"  # another place, no group, a comment: none of it decides a result
    unnamed.write_text(
        "# again\n" + copied.main_config.read_text().replace(f"group: {GROUP}", "").replace("  ", "    ")
    )
    outcome = run_stage("main", str(unnamed), {}, {})
    out = capsys.readouterr().out
    assert counted() == before
    assert outcome.outputs == {"report": report}
    assert outcome.verdict is not None
    for stage in STAGES:
        assert f"{stage}: reused (run {the_run(stage).info.run_id})" in out
        assert the_run("main").data.tags[f"reused.{stage}"] == the_run(stage).info.run_id
        said = read_text_artifact(connect(), the_run(stage).info.run_id, Artifact.SUMMARY) or "absent"
        if stage == "compare":  # what main comes to
            first, *more = said.splitlines()
            assert outcome.summary[0] == first.replace("compare: ", "main: ") and {*more} <= {*outcome.summary}
        else:
            assert said in out


@pytest.mark.slow
def test_what_a_changed_setting_does_not_touch_is_reused_and_the_reason_is_named(copied, tmp_path, capsys):
    before = counted()
    config = tmp_path / "compare.yaml"
    config.write_text(copied.configs["compare"].read_text().replace("patience: 3", "patience: 2"))
    run_stage("main", str(copied.main_config), {}, {"stages.compare": str(config)})
    out = capsys.readouterr().out
    assert out.count("reused (run") == 6
    assert "compare: run because config differs: patience = 2 (was 3) (closest: run" in out
    assert counted() == {**before, "compare": before["compare"] + 1}


@pytest.mark.slow
def test_an_expert_with_the_bytes_of_the_approved_one_goes_on_as_that_one(copied, tmp_path, capsys):
    before = counted()
    config = tmp_path / "train_expert.yaml"  # nobody converges in so few steps: the same policy
    text = copied.configs["train_expert"].read_text()
    config.write_text(text.replace("patience: 3", "patience: 4"))
    assert config.read_text() != text
    outcome = run_stage("main", str(copied.main_config), {}, {"stages.train_expert": str(config)})
    assert outcome.outputs["report"] == the_run("compare").info.run_id
    assert counted() == {**before, **{stage: 2 * before[stage] for stage in ("train_expert", "train_expert_seed")}}
    out = capsys.readouterr().out
    assert "social_nav-expert/2 has the bytes of social_nav-expert/1, which is approved: that one goes on" in out
    assert "collect: reused" in out
    first, second = (connect().get_model_version("social_nav-expert", number) for number in "12")
    assert first.tags[VersionTag.POLICY_DIGEST] == second.tags[VersionTag.POLICY_DIGEST]
    assert second.tags[VersionTag.GATE] == Gate.SUPERSEDED
    assert second.tags[VersionTag.REPLACED_BY] == "1"
    assert (first.tags[VersionTag.GATE], "approved" in first.aliases) == (Gate.APPROVED, True)


@pytest.mark.slow
def test_an_arm_without_its_other_half_is_put_together_anew_from_the_trainings_there_are(copied, capsys):
    lost = the_run("finetune").info.run_id
    connect().delete_run(lost)
    before = counted()
    outcome = run_stage("main", str(copied.main_config), {}, {"group": "again"})
    out = capsys.readouterr().out
    assert counted() == {**before, **{stage: before[stage] + 1 for stage in ("baseline", "finetune", "compare")}}
    assert out.count("6 trainings with an equal content key were finished before") == 2
    assert "baseline: run for group 'again', whose other arm is not that of run" in out
    group = find_group(connect(), "again", "social_nav")
    assert {arm: [member.seed for member in members] for arm, members in group.arms.items()} == {
        arm: [1, 2, 3] for arm in ARMS
    }
    chain = query.why(outcome.outputs["report"])
    assert lost not in {node.run_id for node in chain.nodes}
    assert {the_run(stage).info.run_id for stage in STAGES} <= {node.run_id for node in chain.nodes}
    old, new = (
        json.loads(read_text_artifact(connect(), run.info.run_id, "report/report.json"))["comparison"]
        for run in reversed(search(connect(), {Tag.STAGE: "compare"}))
    )
    assert new["pairs"] == old["pairs"]
    assert new["bill"]["upfront"]["expert_steps"] == old["bill"]["upfront"]["expert_steps"] > 0


@pytest.mark.slow
def test_reuse_false_does_it_all_again(copied, capsys):
    before = counted()
    budget = {"skip_pretrain": "true", "ppo_timesteps": "1024", "matched_seeds": "1", "parallel_environments": "16"}
    run_stage("main", str(copied.main_config), {}, budget)
    run_stage("main", str(copied.main_config), {}, budget)
    once = counted()
    assert once["baseline"] == before["baseline"] + 1
    run_stage("main", str(copied.main_config), {}, {**budget, "reuse": "false"})
    assert counted()["baseline_seed"] > once["baseline_seed"]
    assert "baseline: run: reuse is false" in capsys.readouterr().out


def moved(store, run_id: str, to) -> None:
    """The run's artifacts as they are when somebody emptied the folder."""
    with sqlite3.connect(store / "mlflow.db") as connection:
        connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (to.as_uri(), run_id))


def quarantine(client, tmp_path):
    client.set_tag(the_run("collect").info.run_id, Tag.DATASET_QUALITY, Quality.QUARANTINED)


def taint(client, tmp_path):
    client.set_tag(the_run("pretrain").info.run_id, Tag.TAINT, "made from sand")


def withdraw(client, tmp_path):
    client.delete_registered_model_alias("social_nav-expert", "approved")


def judge_again(client, tmp_path):
    client.set_model_version_tag("social_nav-expert", "1", VersionTag.GATE_RUN_ID, "0" * 32)


def other_bytes(client, tmp_path):
    client.set_tag(the_run("baseline_seed").info.run_id, Tag.POLICY_DIGEST, "0" * 36)


def lose_clone(client, tmp_path):
    client.delete_run(the_run("pretrain_seed").info.run_id)


def lose_training(client, tmp_path):
    client.delete_run(the_run("finetune_seed").info.run_id)


def lose_report(client, tmp_path):
    (tmp_path / "empty").mkdir()
    moved(tmp_path, the_run("compare").info.run_id, tmp_path / "empty")


def lose_dataset(client, tmp_path):
    (tmp_path / "empty").mkdir()
    moved(tmp_path, the_run("collect").info.run_id, tmp_path / "empty")


def change_report(client, tmp_path):
    client.set_tag(the_run("compare").info.run_id, Tag.REPORT_DIGEST, "0" * 36)


def lose_output(client, tmp_path):
    client.delete_tag(the_run("collect").info.run_id, f"{OUTPUT_PREFIX}dataset")


def stop_training(client, tmp_path):
    client.update_run(the_run("baseline_seed").info.run_id, status="FAILED")


@pytest.mark.parametrize(
    ("spoil", "refused", "because"),
    [
        (quarantine, ("collect", "pretrain", "finetune", "compare"), "is 'quarantined'"),
        (taint, ("pretrain", "finetune"), "is tainted: made from sand"),
        (withdraw, ("promote",), "is not approved"),
        (judge_again, ("promote",), "was judged again by run 0000"),
        (other_bytes, ("baseline",), "its files changed"),
        (lose_clone, ("pretrain",), "its clones are of seeds"),
        (lose_training, ("finetune",), "trainings of arm"),
        (stop_training, ("baseline",), "is FAILED"),
        (lose_dataset, ("collect", "pretrain"), "cannot be fetched"),
        (lose_output, ("collect",), "does not say what it hands on"),
        (lose_report, ("compare",), "its report cannot be fetched"),
        (change_report, ("compare",), "the files of its report changed"),
    ],
)
def test_what_is_known_against_a_run_keeps_it_and_what_came_from_it_from_being_reused(
    copied, tmp_path, spoil, refused, because
):
    client = connect()
    runs = {stage: the_run(stage) for stage in refused}
    spoil(client, tmp_path)
    for run in runs.values():
        with pytest.raises(BadInput, match=because):
            refuse_unsound(client, client.get_run(run.info.run_id))


def test_what_does_not_come_from_a_quarantined_dataset_is_still_good(copied, tmp_path):
    quarantine(connect(), tmp_path)
    for stage in ("train_expert", "promote", "baseline"):
        refuse_unsound(connect(), the_run(stage))
