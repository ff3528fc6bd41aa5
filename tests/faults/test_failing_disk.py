"""Every write of a file or of the spool fails in turn: what was there stays whole, and the next attempt succeeds."""

import errno
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from faulty_disk import FaultyDisk
from real_things import Bench, tiny_dataset

from pipeline.data import load_dataset, save_dataset
from pipeline.errors import BadInput, disk_refusal
from pipeline.learning.checkpoints import CheckpointFolder, to_bytes
from pipeline.names import Alias, Artifact, Gate, VersionTag
from pipeline.policies import load_policy, policy_digest
from pipeline.tracking import datasets, references, registry
from pipeline.tracking.datasets import fetch_dataset
from pipeline.tracking.operations import Batch, Close, Files, measured
from pipeline.tracking.spool import Spool, deliver

pytestmark = pytest.mark.slow

FULL, READ_ONLY, BROKEN = errno.ENOSPC, errno.EROFS, errno.EIO


def calls_of(work, error=FULL) -> list[str]:
    with FaultyDisk(error) as disk:
        work()
    return disk.calls


def refused_at(work, error: int, at: int, for_good: bool) -> str:
    """Do it while that call fails; what was raised says that it was the disk."""
    with FaultyDisk(error, at, for_good), pytest.raises(Exception) as caught:
        work()
    words = disk_refusal(caught.value)
    assert words is not None, repr(caught.value)
    return words


def each_fault(calls: list[str]):
    """Every call, failing once and from then on, by all three kinds of trouble in turn."""
    for at in range(1, len(calls) + 1):
        for for_good in (False, True):
            yield (FULL, READ_ONLY, BROKEN)[at % 3], at, for_good


# --- the disk itself --------------------------------------------------------------------------------------------------


def test_the_faulty_disk_fails_the_call_it_was_told_to_and_leaves_half_a_write(tmp_path):
    def work():
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(b"12345678")

    assert calls_of(work) == ["open a", "write a", "open b", "write b"]
    (tmp_path / "b").unlink()
    assert "No space left" in refused_at(work, FULL, 2, False)
    assert (tmp_path / "a").read_bytes() == b"1234"
    assert not (tmp_path / "b").exists()


# --- datasets ---------------------------------------------------------------------------------------------------------


def test_a_dataset_is_there_with_all_its_bytes_or_not_at_all(tmp_path):
    trajectories, metadata = tiny_dataset(1)

    def save():
        save_dataset(tmp_path / "dataset", trajectories, metadata)

    assert unwhole_datasets(save, tmp_path) == []


def unwhole_datasets(save, folder: Path) -> list[str]:
    """The calls after whose failure something is visible that is no dataset, or that the next attempt stumbles over."""
    calls, found = calls_of(save), []
    shutil.rmtree(folder / "dataset")
    for error, at, for_good in each_fault(calls):
        refused_at(save, error, at, for_good)
        left = [path.name for path in folder.iterdir()]
        try:
            if left == ["dataset"]:  # the folder's own sync failed: it is whole all the same
                load_dataset(folder / "dataset")
            elif left:
                raise BadInput(f"{left} are left")
            else:
                save()
                load_dataset(folder / "dataset")
        except BadInput as fault:
            found.append(f"{calls[at - 1]}: {fault}")
        shutil.rmtree(folder / "dataset", ignore_errors=True)
    return found


def test_a_dataset_that_is_written_in_place_is_found_torn(tmp_path):
    trajectories, metadata = tiny_dataset(1)

    def save():
        (tmp_path / "dataset").mkdir(exist_ok=True)
        from pipeline.data.formats.npz import write_archive

        with open(tmp_path / "dataset" / "trajectories.npz", "wb") as file:
            write_archive(file, trajectories.to_arrays())
        (tmp_path / "dataset" / "metadata.json").write_text(json.dumps(metadata.to_data()))

    assert unwhole_datasets(save, tmp_path) != []


def test_a_dataset_that_cannot_be_put_down_here_is_no_dataset_that_is_not_there(store, tmp_path):
    bench = Bench(store)
    trajectories, metadata = tiny_dataset(1)
    save_dataset(tmp_path / "dataset", trajectories, metadata)
    run_id = bench.run("collect")
    bench.client.log_artifacts(run_id, str(tmp_path / "dataset"), Artifact.DATASET)
    run = bench.client.get_run(run_id)

    def fetch():
        for kept in (references._copy, datasets._loaded):  # as another process would
            kept.cache_clear()
        return fetch_dataset(run)

    calls = calls_of(fetch)
    assert any("trajectories.npz" in call for call in calls)
    for error, at, for_good in each_fault(calls):
        try:
            with FaultyDisk(error, at, for_good):
                assert fetch().metadata == metadata  # a copy that fails once is made in another way
        except BadInput as refused:
            assert disk_refusal(refused) is not None, refused
    with FaultyDisk(FULL, 1, True), pytest.raises(BadInput):
        fetch()
    with pytest.raises(BadInput) as caught:
        fetch_dataset(bench.client.get_run(bench.run("collect")))
    assert disk_refusal(caught.value) is None


# --- policies ---------------------------------------------------------------------------------------------------------


def test_a_policy_that_cannot_be_replaced_is_still_the_old_one(tmp_path, store):
    from pipeline.policies import save_policy

    bench = Bench(store)
    old, new = (load_policy(bench.policy_folder(seed)) for seed in (1, 2))
    folder = tmp_path / "policy"
    digests = [save_policy(policy, folder, {}) for policy in (new, old)]

    def replace():
        save_policy(new, folder, {})

    calls = calls_of(replace)
    assert len(calls) == 11  # a folder, twice open, write and sync, sync, two renames, sync
    for error, at, for_good in each_fault(calls):
        save_policy(old, folder, {})
        refused_at(replace, error, at, for_good)
        if folder.exists():
            assert policy_digest(folder) in digests
        else:  # the disk took nothing back, not even a name: the old one lies beside
            assert for_good
            (stale,) = tmp_path.glob(".policy.old-*")
            assert policy_digest(stale) in digests
        replace()
        assert policy_digest(folder) == digests[0]
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# --- checkpoints ------------------------------------------------------------------------------------------------------


def checkpoint(number: int) -> bytes:
    return to_bytes({"number": number, "ended": False, "weights": torch.full((50,), float(number))}, "job")


def lost_checkpoints(save, folder: Path) -> list[str]:
    """The calls whose failure costs more than the checkpoint that `save(number, content)` was writing."""
    reader, found = CheckpointFolder(folder, "job"), []
    for number in (1, 2):
        save(number, checkpoint(number))
    calls = calls_of(lambda: save(3, checkpoint(3)))
    for error, at, for_good in each_fault(calls):
        shutil.rmtree(folder)
        for number in (1, 2):
            save(number, checkpoint(number))
        refused_at(lambda: save(3, checkpoint(3)), error, at, for_good)
        newest = reader.newest()
        if newest is None or newest["number"] not in (2, 3) or reader.damaged:
            found.append(calls[at - 1])
        # recovery on a disk that has failed since: it reads, and the next one may fail as well
        with FaultyDisk(error, 1, True):
            again = reader.newest()
        assert newest is None or again["weights"].equal(newest["weights"])
        save(3, checkpoint(3))
        assert reader.newest()["number"] == 3
    return found


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path):
    folder = tmp_path / "checkpoints"
    assert lost_checkpoints(CheckpointFolder(folder, "job").save, folder) == []


def test_checkpoints_that_are_overwritten_are_found_lost(tmp_path):
    folder = tmp_path / "checkpoints"

    def save(number: int, content: bytes) -> None:
        folder.mkdir(exist_ok=True)
        import hashlib

        for path in folder.iterdir():
            path.unlink()
        (folder / f"{number:06d}-{hashlib.sha256(content).hexdigest()[:36]}.safetensors").write_bytes(content)

    assert lost_checkpoints(save, folder) != []


# --- the spool --------------------------------------------------------------------------------------------------------


def test_what_the_spool_took_stays_readable_and_reaches_the_store_once(store, tmp_path):
    bench = Bench(store)
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "film.gif").write_bytes(b"film")

    def story(folder: Path, run_id: str) -> list[str]:
        """Append, forward, forget; every step is tried again until it is done. Returns what was refused meanwhile."""
        refused: list[str] = []

        def until_done(step):
            for _ in range(20):
                try:
                    return step()
                except (BadInput, OSError) as error:
                    assert disk_refusal(error) is not None, error
                    refused.append(str(error))
            raise AssertionError("it never worked")

        spool = until_done(lambda: Spool(folder))
        until_done(lambda: spool.append(run_id, Batch(points=measured([("a", 1.5, 3)]))))
        until_done(lambda: spool.append(run_id, Files(local=str(tmp_path / "films"), folder="films")))
        until_done(lambda: spool.append(run_id, Close(status="FINISHED", time=measured([("", 0.0, 0)])[0][3])))

        def all_delivered():
            trouble = deliver(spool, bench.client)
            if trouble is not None or spool.waiting():
                raise BadInput(f"{trouble}") from OSError(errno.EIO, "as the store says")

        until_done(all_delivered)
        until_done(spool.to_disk)
        assert spool.refusals() == []
        spool.close()
        return refused

    with FaultyDisk(FULL) as disk:
        assert story(tmp_path / "spool-0", bench.run("seed", None)) == []
    told = 0
    for at in range(1, len(disk.calls) + 1, 6):
        run_id = bench.run("seed", None)
        with FaultyDisk(FULL if at % 4 == 1 else READ_ONLY, at):
            told += len(story(tmp_path / f"spool-{at}", run_id))
        run = bench.client.get_run(run_id)
        assert (run.info.status, run.data.metrics) == ("FINISHED", {"a": 1.5})
        assert [point.value for point in bench.client.get_metric_history(run_id, "a")] == [1.5]
        assert [file.path for file in bench.client.list_artifacts(run_id, "films")] == ["films/film.gif"]
    assert told > 0


def test_a_spool_on_a_disk_that_stays_full_says_so_and_keeps_what_it_has(store, tmp_path):
    spool = Spool(tmp_path / "spool")
    spool.append("a" * 32, Close(status="FINISHED", time=1))
    for for_good in (False, True):
        words = refused_at(lambda: spool.append("a" * 32, Batch(tags={"mlflow.note.content": "x"})), FULL, 1, for_good)
        assert words == "database or disk is full"
        assert [record.operation.do for record in spool.next(9)] == ["close"]
    spool.append("a" * 32, Batch(tags={"mlflow.note.content": "x"}))
    assert spool.waiting() == 2


# --- the registry -----------------------------------------------------------------------------------------------------


def approve_interrupted(bench: Bench, at: int, for_good: bool) -> tuple[object, object]:
    """A version is approved; the approval of a second one fails at that commit. Returns both."""
    first, second = bench.candidate(seed=1), bench.candidate(seed=2)
    registry.approve(bench.client, first, "gate-1", "good")
    with FaultyDisk(BROKEN, at, for_good, "COMMIT"), pytest.raises(Exception) as caught:
        registry.approve(bench.client, second, "gate-2", "better")
    assert disk_refusal(caught.value) is not None, repr(caught.value)
    return first, second


def usable(bench: Bench) -> list[str]:
    """Versions that may demonstrate."""
    found = []
    for listed in bench.client.search_model_versions(""):
        version = bench.version(listed)
        assert VersionTag.POLICY_DIGEST in version.tags
        try:
            registry.require_approved(version, "the test")
        except BadInput:
            continue
        found.append(str(version.version))
    return found


def saying_so(bench: Bench) -> list[str]:
    found = [bench.version(listed) for listed in bench.client.search_model_versions("")]
    return [str(v.version) for v in found if v.tags[VersionTag.GATE] == Gate.APPROVED]


def overlaps(bench: Bench) -> bool:
    periods = datasets.approvals(bench.client, "walk", {})
    return any(a.until is None or a.until > b.since for a, b in itertools.pairwise(periods))


COMMITS = 10  # six tags of the new version, the alias, three tags of the old one


@pytest.mark.parametrize("commit", (1, 4, 7, 8, 9, 10))
def test_an_approval_that_fails_half_way_leaves_one_approved_version_and_the_next_one_settles_it(store, commit):
    bench = Bench(store)
    first, second = approve_interrupted(bench, commit, for_good=commit % 2 == 0)
    assert len(usable(bench)) == 1
    if commit in (4, 9):  # not the same one, but another comes next
        second = bench.candidate(seed=3)
    registry.approve(bench.client, second, "gate-3", "better")
    assert usable(bench) == saying_so(bench) == [str(second.version)]
    assert not overlaps(bench)
    assert bench.version(first).tags[VersionTag.GATE] == Gate.SUPERSEDED


def test_without_settling_two_versions_would_say_that_they_are_approved(store, monkeypatch):
    monkeypatch.setattr(registry, "_settle_interrupted", lambda *interrupted: None)
    bench = Bench(store)
    _, second = approve_interrupted(bench, COMMITS, for_good=False)
    registry.approve(bench.client, second, "gate-3", "better")
    assert len(saying_so(bench)) == 2


def test_a_registry_that_does_not_answer_is_no_registry_without_an_approved_version(store):
    bench = Bench(store)
    version = bench.candidate()
    registry.approve(bench.client, version, "gate-1", "good")
    work = lambda: registry.approved_version(bench.client, "walk")  # noqa: E731
    calls = calls_of(work, BROKEN)
    assert calls
    for at in range(1, len(calls) + 1):
        assert refused_at(work, BROKEN, at, False) == "disk I/O error"
    assert str(work().version) == str(version.version)
    assert bench.client.get_model_version_by_alias("walk-expert", Alias.APPROVED).version == version.version
