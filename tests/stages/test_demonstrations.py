"""Where demonstrations come from: recorded, imported from Minari, or repaired; all through one validation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import query
from pipeline.errors import BadInput
from pipeline.names import Artifact, Metric, Quality, Tag, lineage_run_tag
from pipeline.tracking.datasets import download_dataset, fetch_dataset, fetch_for_training, find_dataset_run
from pipeline.trajectories import content_digest, load_dataset, save_dataset
from pipeline.workflow import run_stage

COLLECT = "configs/smoke/collect.yaml"
VALIDATE = "configs/smoke/validate.yaml"
TASK = "social_nav"


def refusal(stage: str, config: str, upstream: dict, overrides: dict) -> str:
    with pytest.raises(BadInput) as caught:
        run_stage(stage, config, upstream, overrides)
    return str(caught.value)


def collected(client, **overrides: str):
    """Outcome of `collect` and the dataset it left."""
    outcome = run_stage("collect", COLLECT, {}, {key.replace("__", "."): value for key, value in overrides.items()})
    return outcome, fetch_dataset(find_dataset_run(client, outcome.outputs["dataset"], TASK))


def quarantined(client, story) -> str:
    """The story's dataset, refused for being too short; returns its id."""
    assert run_stage("validate", VALIDATE, {"dataset": story.dataset}, {"min_episodes": "100"}).verdict is False
    return story.dataset


def export(story, folder: Path) -> Path:
    query.export_dataset(story.dataset, str(folder))
    return folder


# --- recorded --------------------------------------------------------------------------------------------------------


def test_what_the_approved_expert_showed_is_validated_and_trained_on(story, client):
    stored = fetch_for_training(client, story.dataset, TASK)
    assert (len(stored.trajectories), stored.metadata.demonstrator["kind"]) == (24, "expert")
    tags = client.get_run(story.collect).data.tags
    assert tags[Tag.DATASET_QUALITY] == Quality.VALIDATED
    assert tags[Tag.LINEAGE_EXPERT] == "social_nav-expert/1"


def test_metadata_that_were_forged_and_sealed_again_are_refused(story, client, tmp_path, monkeypatch):
    """The files agree with each other and with the digest of the arrays, but not with what the store recorded."""
    stored = fetch_dataset(find_dataset_run(client, story.dataset, TASK))
    forged = tmp_path / "forged"
    save_dataset(forged, stored.trajectories, replace(stored.metadata, seeds=(1, 2, 3)))
    for module in ("pipeline.stages.validate", "pipeline.tracking.datasets"):  # the importing one first
        monkeypatch.setattr(f"{module}.download_dataset", lambda run: forged)
    with pytest.raises(BadInput, match="its metadata changed"):
        fetch_for_training(client, story.dataset, TASK)
    outcome = run_stage("validate", VALIDATE, {"dataset": story.dataset}, {})
    assert "metadata_unchanged" in outcome.summary[0]


@pytest.mark.parametrize("content", ["", "{}", '{"demonstrator": []}', "[1]"])
def test_unreadable_metadata_quarantine_the_dataset_and_leave_it_in_the_list(
    story, client, tmp_path, monkeypatch, content
):
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(download_dataset(client.get_run(story.collect)), damaged)
    (damaged / "metadata.json").write_text(content)
    monkeypatch.setattr("pipeline.stages.validate.download_dataset", lambda run: damaged)
    monkeypatch.setattr("pipeline.tracking.catalogue.download", lambda _: damaged / "metadata.json")
    outcome = run_stage("validate", VALIDATE, {"dataset": story.dataset}, {})
    assert outcome.verdict is False
    listed = query.datasets(TASK).iloc[0]
    assert (listed.dataset_id, listed.quality) == (story.dataset, Quality.QUARANTINED)
    assert listed.episodes is None


# --- imported --------------------------------------------------------------------------------------------------------


def test_an_export_to_minari_comes_back_with_the_same_bits_as_an_imported_dataset(story, client, tmp_path):
    ours = fetch_for_training(client, story.dataset, TASK)
    outcome, again = collected(client, minari__path=str(export(story, tmp_path / "minari")))
    assert outcome.verdict is True
    assert content_digest(again.trajectories) == content_digest(ours.trajectories)
    assert again.metadata.demonstrator["kind"] == "imported"
    assert again.metadata.dataset_id != story.dataset
    assert again.metadata.scenario_coverage == ours.metadata.scenario_coverage
    assert fetch_for_training(client, again.metadata.dataset_id, TASK).run_id == again.run_id
    assert "replay" not in {r["rule"] for r in validation(client, again.run_id)["rules"] if r["state"] != "passed"}
    assert client.get_run(again.run_id).data.metrics[Metric.ENVIRONMENT_STEPS] == 0


def test_a_round_trip_through_a_file_does_not_wash_a_dataset_clean(story, client, tmp_path):
    folder = export(story, tmp_path / "minari")
    _, again = collected(client, minari__path=str(folder))
    assert story.collect in {node.run_id for node in query.why(again.run_id).nodes}
    quarantined(client, story)
    assert "was quarantined by run" in client.get_run(again.run_id).data.tags[Tag.TAINT]
    message = refusal("collect", COLLECT, {}, {"minari.path": str(folder)})
    assert f"it was exported from dataset {story.dataset}: it is quarantined" in message


def validation(client, run_id: str) -> dict:
    import json

    from pipeline.tracking.runs import read_text_artifact

    return json.loads(read_text_artifact(client, run_id, Artifact.VALIDATION_JSON))


def test_somebody_elses_minari_dataset_needs_the_scenario_it_belongs_to(story, client, tmp_path):
    import json

    folder = export(story, tmp_path / "minari")
    path = folder / "data" / "metadata.json"
    described = json.loads(path.read_text())
    del described["demonstrations"]
    path.write_text(json.dumps(described))
    message = refusal("collect", COLLECT, {}, {"minari.path": str(folder)})
    assert "say which task and scenario it belongs to" in message
    message = refusal("collect", COLLECT, {}, {"minari.path": str(folder), "minari.scenario": "nowhere"})
    assert "'nowhere'" in message
    # the infos that the task's success is read from are not in the file: missed by name, never counted as 0
    scenario = {"minari.path": str(folder), "minari.scenario": "frontal_approach_low"}
    assert "success needs the info 'success'" in refusal("collect", COLLECT, {}, scenario)


def test_an_import_with_a_fault_is_quarantined_and_kept(story, client, tmp_path):
    import h5py

    folder = export(story, tmp_path / "minari")
    with h5py.File(folder / "data" / "main_data.hdf5", "r+") as file:
        observations = file["episode_3/observations"]
        observations[1:] = observations[:-1]  # one step late
    outcome, stored = collected(client, minari__path=str(folder))
    assert outcome.verdict is False
    assert "replay" in outcome.summary[0]
    with pytest.raises(BadInput, match="'quarantined'; only a validated dataset can be trained on"):
        fetch_for_training(client, stored.metadata.dataset_id, TASK)
    assert stored.metadata.dataset_id in set(query.datasets().dataset_id)


def test_a_missing_minari_dataset_is_one_line(story):
    assert "no metadata.json" in refusal("collect", COLLECT, {}, {"minari.path": "/nowhere"})


def test_only_one_source_can_be_given(story):
    message = refusal("collect", COLLECT, {}, {"minari.path": "/x", "repaired.dataset": "a", "repaired.folder": "b"})
    assert "minari and repaired exclude each other" in message


# --- repaired --------------------------------------------------------------------------------------------------------


def test_a_repaired_copy_is_a_dataset_of_its_own_linked_to_the_one_it_repairs(story, client, tmp_path):
    old = quarantined(client, story)
    trajectories, metadata = load_dataset(download_dataset(client.get_run(story.collect)))
    fewer = trajectories.select(np.arange(23))  # the last episode is left out
    coverage = {str(s): int((fewer.scenarios == s).sum()) for s in np.unique(fewer.scenarios)}
    changed = replace(
        metadata, episodes=23, steps=fewer.steps, content_digest=content_digest(fewer), scenario_coverage=coverage
    )
    save_dataset(tmp_path / "repaired", fewer, changed)
    outcome, stored = collected(client, repaired__dataset=old, repaired__folder=str(tmp_path / "repaired"))
    assert outcome.verdict is True, outcome.summary
    new = client.get_run(stored.run_id).data.tags
    assert new[lineage_run_tag("repaired")] == story.collect
    assert new[Tag.LINEAGE_EXPERT] == "social_nav-expert/1"
    assert stored.metadata.dataset_id != old
    assert stored.metadata.created_at == metadata.created_at
    assert fetch_for_training(client, stored.metadata.dataset_id, TASK)
    assert client.get_run(story.collect).data.tags[Tag.DATASET_QUALITY] == Quality.QUARANTINED
    assert story.collect in {node.run_id for node in query.why(stored.run_id).nodes}
    assert stored.run_id in {node.run_id for node in query.impact(old).nodes}
    # refusing the old one once more says nothing against its repair
    quarantined(client, story)
    assert Tag.TAINT not in client.get_run(stored.run_id).data.tags


def test_a_repair_cannot_give_the_data_another_origin(story, client, tmp_path):
    old = quarantined(client, story)
    trajectories, metadata = load_dataset(download_dataset(client.get_run(story.collect)))
    better = {**metadata.demonstrator, "version": "2"}
    save_dataset(tmp_path / "repaired", trajectories, replace(metadata, demonstrator=better))
    overrides = {"repaired.dataset": old, "repaired.folder": str(tmp_path / "repaired")}
    message = refusal("collect", COLLECT, {}, overrides)
    assert "demonstrator = " in message and "a repair keeps its origin" in message


def test_only_a_quarantined_dataset_is_repaired(story, client):
    folder = str(download_dataset(client.get_run(story.collect)))
    overrides = {"repaired.dataset": story.dataset, "repaired.folder": folder}
    assert "is 'validated'; only a quarantined dataset is repaired" in refusal("collect", COLLECT, {}, overrides)


def test_a_repair_does_not_mend_a_tainted_dataset(story, client):
    quarantined(client, story)
    client.set_tag(story.collect, Tag.TAINT, "its expert cheated")
    overrides = {"repaired.dataset": story.dataset, "repaired.folder": "/x"}
    assert "is tainted: its expert cheated" in refusal("collect", COLLECT, {}, overrides)


# --- nothing simulated again -----------------------------------------------------------------------------------------


def test_leaving_out_the_simulation_asks_for_alignment_by_the_data_instead(story, client):
    outcome = run_stage("validate", VALIDATE, {"dataset": story.dataset}, {"replay_episodes": "0"})
    assert outcome.verdict is True
    run = find_run(client, "validate")
    states = {rule["rule"]: rule["state"] for rule in validation(client, run)["rules"]}
    assert (states["replay"], states["time_alignment"]) == ("not run", "passed")


def find_run(client, stage: str) -> str:
    return query.runs(stage=stage).iloc[0].run_id
