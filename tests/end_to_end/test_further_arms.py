"""More than two arms: trained by `finetune` from the same clones, ranked by `compare`."""

import json

from pipeline.names import ARMS, Arm, Artifact, Tag
from pipeline.tracking.runs import read_text_artifact, search
from pipeline.tracking.store import connect

SHORT = ("--training.total_timesteps", "1024", "--control_timesteps", "0", "--group", "arms", "--seeds", "[1, 2, 3]")
NAIVE = ("--arms", "{naive: {warm_start: {initial_action_std: null}}}")


def test_a_further_arm_is_trained_ranked_and_reused(stage):
    assert stage("baseline", *SHORT, *NAIVE)[0] == 0
    code, _, errors = stage("finetune", *SHORT, *NAIVE)
    assert code == 0, errors
    trained = search(connect(), {Tag.GROUP: "arms", Tag.STAGE: "finetune_seed"})
    assert sorted(run.data.tags[Tag.ARM] for run in trained) == ["naive"] * 3 + [Arm.PRETRAINED] * 3
    code, out, errors = stage("compare", "--group", "arms", "--playback_episodes", "0")
    assert code in (0, 1), errors
    assert "naive: " in out
    (run,) = search(connect(), {Tag.GROUP: "arms", Tag.STAGE: "compare"})
    report = json.loads(read_text_artifact(connect(), run.info.run_id, f"{Artifact.REPORT}/report.json"))
    assert {one["arm"] for one in report["comparison"]["ranking"]} == {"naive", Arm.PRETRAINED}
    page = read_text_artifact(connect(), run.info.run_id, f"{Artifact.REPORT}/report.md")
    assert "### Which arm needs the fewest steps" in page
    again = stage("finetune", *SHORT, *NAIVE)[1]
    assert "6 trainings with an equal content key were finished before" in again
    assert len(search(connect(), {Tag.GROUP: "arms", Tag.STAGE: "finetune_seed"})) == 6


def test_an_arm_that_every_comparison_has_cannot_be_named_again(stage):
    for name in ARMS:
        code, _, errors = stage("finetune", *SHORT, "--arms", f"{{{name}: {{warm_start: adaptive}}}}")
        assert code == 2
        assert f"'{name}' is an arm of every comparison" in errors
