"""`main` from an expert as it stands: no clone is made, its fine-tuning is compared with training from scratch."""

import pytest
from project import mlflow_run

from pipeline.cli import stage_main
from pipeline.names import Arm, Artifact, Metric, Tag, lineage_run_tag
from pipeline.tracking.models import find_policy
from pipeline.tracking.runs import read_text_artifact, search
from pipeline.tracking.store import connect

EXPERT = "models:/social_nav-expert@approved"


@pytest.mark.slow
def test_an_approved_expert_is_fine_tuned_and_compared_by_one_command_and_the_same_again_trains_nothing(
    changeable, projects, capfd
):
    (changeable / "main.yaml").write_text(projects[0].main_config.read_text().replace("group: trial", "group: expert"))
    ended = mlflow_run(changeable, "main", f"policy={EXPERT}", "compare.playback_episodes=0")
    assert ended.code in (0, 1), ended.err
    client = connect()
    expert = find_policy(client, EXPERT, "social_nav", {})
    trained = search(client, {Tag.GROUP: "expert", Tag.STAGE: "finetune_seed", Tag.ARM: Arm.PRETRAINED})
    assert len(trained) == 3
    assert {run.data.tags[lineage_run_tag("policy")] for run in trained} == {expert.run_id}
    assert {run.data.tags[Tag.LINEAGE_EXPERT_DIGEST] for run in trained} == {expert.digest}
    (compared,) = search(client, {Tag.GROUP: "expert", Tag.STAGE: "compare"})
    page = read_text_artifact(client, compared.info.run_id, f"{Artifact.REPORT}/report.md")
    assert "Pre-trained is PPO that starts from a policy that was there before" in page
    assert f"policy of run {expert.run_id}" in page
    # what its training took is on the bill, every seed of it
    made = client.get_run(expert.run_id).data.metrics[Metric.ENVIRONMENT_STEPS]
    assert compared.data.metrics["bill/upfront_steps"] == compared.data.metrics["bill/expert_steps"] == made
    capfd.readouterr()
    again = ["--config", str(changeable / "main.yaml"), "--policy", EXPERT, "--compare.playback_episodes", "0"]
    assert stage_main("main", again) == ended.code
    said = capfd.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("---") and "reused" not in line] == []
