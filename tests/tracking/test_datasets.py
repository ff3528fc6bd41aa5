"""The doors a dataset passes: which reference means which dataset, and what never reaches training."""

import numpy as np
import pytest
from real_things import TASK

from pipeline.data import content_digest, load_dataset, save_dataset
from pipeline.errors import BadInput
from pipeline.names import Quality, Tag
from pipeline.tracking.datasets import fetch_for_training, find_dataset_run, log_dataset_input
from pipeline.tracking.stage_run import open_run

UNKNOWN = "0" * 32


def refusal(action) -> str:
    with pytest.raises(BadInput) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stored_folder(bench, run_id):
    (file,) = bench.folder.glob(f"mlartifacts/**/{run_id}/**/trajectories.npz")
    return file.parent


def test_a_validated_dataset_reaches_training_unchanged_by_every_reference(bench):
    run_id = bench.dataset_run()
    for reference in (run_id, "walk-0001", "latest"):
        stored = fetch_for_training(bench.client, reference, TASK)
        assert stored.run_id == run_id
        assert content_digest(stored.trajectories) == bench.client.get_run(run_id).data.tags[Tag.DATASET_DIGEST]


@pytest.mark.parametrize("quality", [Quality.QUARANTINED, Quality.DRAFT, "good"])
def test_only_a_validated_dataset_is_trained_on(bench, quality):
    run_id = bench.dataset_run(quality)
    for reference in (run_id, "walk-0001", "latest"):
        message = refusal(lambda r=reference: fetch_for_training(bench.client, r, TASK))
        assert "dataset walk-0001" in message
        assert f"'{quality}'" in message
        assert "dataset/validation.md" in message


def test_a_dataset_without_a_record_of_its_quality_is_not_trained_on(bench):
    run_id = bench.dataset_run()
    bench.client.delete_tag(run_id, Tag.DATASET_QUALITY)
    assert "only a validated dataset" in refusal(lambda: fetch_for_training(bench.client, run_id, TASK))


def test_a_tainted_dataset_is_refused_with_the_reason(bench):
    run_id = bench.dataset_run(taint="its expert cheated")
    message = refusal(lambda: fetch_for_training(bench.client, run_id, TASK))
    assert "walk-0001 is tainted: its expert cheated" in message


def test_a_changed_byte_in_the_arrays_is_refused(bench):
    run_id = bench.dataset_run()
    file = stored_folder(bench, run_id) / "trajectories.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    refusal(lambda: fetch_for_training(bench.client, run_id, TASK))


def test_data_that_was_exchanged_with_everything_that_describes_it_is_refused(bench):
    """Arrays and metadata agree with each other, but not with what the store recorded."""
    from dataclasses import replace

    run_id = bench.dataset_run()
    folder = stored_folder(bench, run_id)
    trajectories, metadata = load_dataset(folder)
    forged = replace(trajectories, rewards=trajectories.rewards + np.float32(1))
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    save_dataset(folder, forged, replace(metadata, content_digest=content_digest(forged)))
    message = refusal(lambda: fetch_for_training(bench.client, run_id, TASK))
    assert "walk-0001: its files changed" in message
    assert content_digest(forged) in message


def test_a_dataset_whose_files_are_gone_is_refused_by_its_run(bench):
    run_id = bench.dataset_run()
    for file in stored_folder(bench, run_id).iterdir():
        file.unlink()
    refusal(lambda: fetch_for_training(bench.client, run_id, TASK))


def test_a_dataset_of_another_task_is_refused(bench):
    run_id = bench.dataset_run(task="swim")
    message = refusal(lambda: find_dataset_run(bench.client, run_id, TASK))
    assert "'swim'" in message
    assert "'walk'" in message
    assert "no finished run" in refusal(lambda: find_dataset_run(bench.client, "latest", TASK))


def test_an_unknown_id_never_stands_for_the_latest_dataset(bench):
    bench.dataset_run()
    assert UNKNOWN in refusal(lambda: find_dataset_run(bench.client, UNKNOWN, TASK))
    message = refusal(lambda: find_dataset_run(bench.client, "walk-9999", TASK))
    assert "'walk-9999'" in message
    assert "python -m pipeline datasets" in message


def test_a_run_that_recorded_nothing_is_refused(bench):
    bench.dataset_run()
    run_id = bench.run("train_expert")
    assert "recorded no dataset" in refusal(lambda: find_dataset_run(bench.client, run_id, TASK))


@pytest.mark.parametrize("reference", ["Latest", "", "walk", "walk-0001' or '1'='1", "../../etc", "x" * 5000, "a\nb"])
def test_what_is_no_reference_is_refused_in_one_short_line(bench, reference):
    bench.dataset_run()
    assert len(refusal(lambda: find_dataset_run(bench.client, reference, TASK))) < 400


def test_latest_is_the_newest_finished_recording(bench):
    bench.dataset_run(seed=1)
    newest = bench.dataset_run(seed=2)
    bench.run("collect", status="FAILED")
    assert find_dataset_run(bench.client, "latest", TASK).info.run_id == newest


def test_a_dataset_shows_as_an_input_of_the_run_with_its_own_digest(bench):
    recorded = bench.dataset_run()
    stored = fetch_for_training(bench.client, recorded, TASK)
    with open_run("pretrain") as run:
        log_dataset_input(run, stored.metadata, recorded, "training")
    (shown,) = bench.client.get_run(run.run_id).inputs.dataset_inputs
    assert (shown.dataset.name, shown.dataset.digest) == ("walk-0001", stored.metadata.content_digest)
    assert [(tag.key, tag.value) for tag in shown.tags] == [("mlflow.data.context", "training")]
    assert f"runs:/{recorded}/dataset" in shown.dataset.source
