"""The registry's states: what moves a version where, and what never does."""

import json

import pytest
from real_things import TASK

from pipeline.errors import BadInput
from pipeline.names import Alias, Gate, VersionTag
from pipeline.tracking import datasets, registry
from pipeline.tracking.models import find_version


def state(bench, version) -> tuple[str, frozenset[str]]:
    now = bench.version(version)
    return now.tags[VersionTag.GATE], frozenset(now.aliases)


def history(bench, version) -> list[list[str | None]]:
    return json.loads(bench.version(version).tags.get(VersionTag.HISTORY, "[]"))


def approved_number(bench) -> int:
    return int(registry.approved_version(bench.client, TASK).version)


def test_a_new_version_is_the_candidate_and_pending(bench):
    first, second = bench.candidate(), bench.candidate(seed=2)
    assert (first.name, int(first.version), int(second.version)) == ("walk-expert", 1, 2)
    assert state(bench, second) == (Gate.PENDING, {Alias.CANDIDATE})
    assert state(bench, first) == (Gate.PENDING, frozenset())
    assert second.tags[VersionTag.POLICY_DIGEST] != first.tags[VersionTag.POLICY_DIGEST]
    assert second.tags[VersionTag.TASK] == TASK
    assert second.tags[VersionTag.PROMOTABLE] == "true"


def test_without_an_approval_nothing_is_approved(bench):
    assert registry.approved_version(bench.client, TASK) is None
    bench.candidate()
    assert registry.approved_version(bench.client, TASK) is None
    assert datasets.approvals(bench.client, TASK, {}) == ()


def test_approval_moves_the_alias_and_records_run_reason_and_time(bench):
    version, gate = bench.candidate(), bench.run("promote")
    moved = registry.approve(bench.client, version, gate, "all 6 checks hold")
    assert (moved.version, moved.replaced) == ("1", None)
    assert state(bench, version) == (Gate.APPROVED, {Alias.APPROVED})
    tags = bench.version(version).tags
    assert (tags[VersionTag.GATE_REASON], tags[VersionTag.GATE_RUN_ID]) == ("all 6 checks hold", gate)
    assert history(bench, version) == [[tags[VersionTag.APPROVED_AT], None]]
    assert approved_number(bench) == 1
    registry.require_approved(bench.version(version), "collect")


def test_a_moment_of_use_is_not_before_the_approval_by_whatever_clock(bench, monkeypatch):
    version, ahead = bench.candidate(), "2999-01-01T00:00:00.000Z"
    monkeypatch.setattr(registry, "now", lambda: ahead)
    registry.approve(bench.client, version, bench.run("promote"), "by a machine whose clock is ahead")
    monkeypatch.undo()
    assert registry.moment_of_use(bench.client, bench.version(version), "collect") == ahead > registry.now()


def test_the_next_approval_supersedes_the_last_and_both_say_so(bench):
    first, second = bench.candidate(), bench.candidate(seed=2)
    registry.approve(bench.client, first, bench.run("promote"), "good")
    gate = bench.run("promote")
    moved = registry.approve(bench.client, second, gate, "better")
    assert (moved.version, moved.replaced) == ("2", "1")
    assert state(bench, first) == (Gate.SUPERSEDED, frozenset())
    assert state(bench, second) == (Gate.APPROVED, {Alias.APPROVED})
    assert bench.version(first).tags[VersionTag.REPLACED_BY] == "2"
    assert bench.version(second).tags[VersionTag.REPLACED] == "1"
    ((since, until),) = history(bench, first)
    assert since <= until == bench.version(second).tags[VersionTag.APPROVED_AT]


def test_approving_the_approved_version_again_goes_on_in_its_period(bench):
    version = bench.candidate()
    registry.approve(bench.client, version, bench.run("promote"), "good")
    before = history(bench, version)
    second_gate = bench.run("promote")
    assert registry.approve(bench.client, version, second_gate, "still good").replaced is None
    assert history(bench, version) == before
    assert bench.version(version).tags[VersionTag.GATE_RUN_ID] == second_gate
    assert state(bench, version)[0] == Gate.APPROVED


def test_a_refusal_changes_nothing_but_the_tags_of_the_gate(bench):
    approved, refused = bench.candidate(), bench.candidate(seed=2)
    registry.approve(bench.client, approved, bench.run("promote"), "good")
    before, gate = bench.version(refused), bench.run("promote", status="FAILED")
    registry.withhold(bench.client, refused, gate, "success_rate 0.5")
    after = bench.version(refused)
    changed = {key for key in {**before.tags, **after.tags} if before.tags.get(key) != after.tags.get(key)}
    assert changed == {VersionTag.GATE, VersionTag.GATE_REASON, VersionTag.GATE_RUN_ID}
    assert after.tags[VersionTag.GATE] == Gate.REFUSED
    assert after.aliases == before.aliases
    assert approved_number(bench) == int(approved.version)
    assert state(bench, approved)[0] == Gate.APPROVED
    assert len(datasets.approvals(bench.client, TASK, {})) == 1


def test_an_approved_version_that_now_fails_keeps_its_alias_but_demonstrates_no_more(bench):
    version = bench.candidate()
    assert registry.withhold(bench.client, version, bench.run("promote"), "never good") is False
    registry.approve(bench.client, version, bench.run("promote"), "good")
    assert registry.withhold(bench.client, version, bench.run("promote"), "fails on new scenarios") is True
    assert state(bench, version) == (Gate.REFUSED, {Alias.APPROVED})
    assert bench.version(version).tags[VersionTag.GATE_REASON] == "fails on new scenarios"
    ((since, until),) = history(bench, version)
    assert since <= until
    with pytest.raises(BadInput, match=r"walk-expert/1 is not approved \(gate: refused\)"):
        registry.require_approved(bench.version(version), "collect")


def test_an_approval_after_a_refusal_is_a_new_period(bench):
    version = bench.candidate()
    registry.approve(bench.client, version, bench.run("promote"), "good")
    registry.withhold(bench.client, version, bench.run("promote"), "fails")
    registry.approve(bench.client, version, bench.run("promote"), "good again")
    assert state(bench, version)[0] == Gate.APPROVED
    (_, first_until), (second_since, second_until) = history(bench, version)
    assert first_until <= second_since
    assert second_until is None
    registry.require_approved(bench.version(version), "collect")


def test_a_version_that_was_refused_stays_refused_when_another_takes_its_alias(bench):
    first, second = bench.candidate(), bench.candidate(seed=2)
    registry.approve(bench.client, first, bench.run("promote"), "good")
    registry.withhold(bench.client, first, bench.run("promote"), "fails")
    assert registry.approve(bench.client, second, bench.run("promote"), "better").replaced == "1"
    assert state(bench, first) == (Gate.REFUSED, frozenset())
    assert bench.version(first).tags[VersionTag.REPLACED_BY] == "2"


def test_a_refused_version_may_be_approved_later(bench):
    version = bench.candidate()
    registry.withhold(bench.client, version, bench.run("promote"), "bad rules")
    registry.approve(bench.client, version, bench.run("promote"), "good rules")
    assert state(bench, version)[0] == Gate.APPROVED


def test_a_version_with_the_bytes_of_the_approved_one_gives_way_to_it(bench):
    first, second = bench.candidate(), bench.candidate()
    registry.approve(bench.client, first, bench.run("promote"), "good")
    before, gate = history(bench, first), bench.run("promote")
    moved = registry.approve(bench.client, second, gate, "good")
    assert (moved.version, moved.replaced) == ("1", None)
    assert state(bench, first)[0] == Gate.APPROVED and approved_number(bench) == 1
    assert (history(bench, first), bench.version(first).tags[VersionTag.GATE_RUN_ID]) == (before, gate)
    assert state(bench, second) == (Gate.SUPERSEDED, frozenset())
    assert bench.version(second).tags[VersionTag.GATE_REASON] == "it has the bytes of version 1, which is approved"
    assert bench.version(second).tags[VersionTag.REPLACED_BY] == "1"


def test_a_version_with_the_bytes_of_one_that_was_refused_takes_its_place(bench):
    first, second = bench.candidate(), bench.candidate()
    registry.approve(bench.client, first, bench.run("promote"), "good")
    registry.withhold(bench.client, first, bench.run("promote"), "hits walls")
    assert registry.approve(bench.client, second, bench.run("promote"), "other rules").version == "2"
    assert approved_number(bench) == 2


# --- what somebody wrote into the tags -------------------------------------------------------------------------------

NO_HISTORY = [
    "no JSON",
    "{}",
    "7",
    "[7]",
    '[["x", null]]',
    "[[null, null]]",
    '[["2026-01-01T00:00:00", null]]',
    "[" * 4_999,
]


def spoil(bench, version, tag: str, value: str | None) -> None:
    if value is None:
        bench.client.delete_model_version_tag(version.name, version.version, tag)
    else:
        bench.client.set_model_version_tag(version.name, version.version, tag, value)


def test_a_history_that_is_none_concerns_its_own_version_alone(bench):
    spoilt, sound = bench.candidate(), bench.candidate(seed=2)
    registry.approve(bench.client, spoilt, bench.run("promote"), "good")
    line = "walk-expert/1: its tag gate.history is no list of periods of approval"
    for text in NO_HISTORY:
        spoil(bench, spoilt, VersionTag.HISTORY, text)
        assert line in refused_expert(bench, spoilt), text[:30]
        with pytest.raises(BadInput, match=line):
            registry.approve(bench.client, spoilt, bench.run("promote"), "again")
        with pytest.raises(BadInput, match=line):
            datasets.approvals(bench.client, TASK, {"kind": "expert", "version": "1"})
        for other in ({"kind": "expert", "version": "2"}, {"kind": "scripted", "version": "1"}):
            assert datasets.approvals(bench.client, TASK, other) == (), text[:30]
    # the next one takes its place, and can be rolled back to; that one cannot
    for version in (sound, bench.candidate(seed=3)):
        registry.approve(bench.client, version, bench.run("promote"), "better")
    assert registry.roll_back(bench.client, sound, bench.run("promote"), "x").replaced == "3"
    with pytest.raises(BadInput, match=line):
        registry.roll_back(bench.client, spoilt, bench.run("promote"), "x")
    registry.require_approved(bench.version(sound), "collect")
    assert state(bench, spoilt) == (Gate.SUPERSEDED, frozenset())
    assert bench.version(spoilt).tags[VersionTag.HISTORY] == text


def test_a_version_whose_history_cannot_be_read_can_be_refused_and_tainted(bench):
    version = bench.candidate()
    registry.approve(bench.client, version, bench.run("promote"), "good")
    spoil(bench, version, VersionTag.HISTORY, "no JSON")
    assert registry.withhold(bench.client, version, bench.run("promote"), "hits walls") is True
    assert registry.taint(bench.client, version.name, version.version, "cheated") is True
    assert state(bench, version)[0] == Gate.REFUSED


@pytest.mark.parametrize("tag", [VersionTag.GATE_RUN_ID, VersionTag.POLICY_DIGEST, VersionTag.HISTORY])
def test_an_approval_that_lacks_what_the_gate_writes_is_none(bench, tag):
    version = bench.candidate()
    registry.approve(bench.client, version, bench.run("promote"), "good")
    spoil(bench, version, tag, None)
    assert f"walk-expert/1 is not approved: its tags say so without {tag}" in refused_expert(bench, version)


def test_an_approval_without_its_moment_is_still_ended_and_one_without_its_reason_still_refused(bench):
    first, second, third = (bench.candidate(seed=seed) for seed in (1, 2, 3))
    registry.approve(bench.client, first, bench.run("promote"), "good")
    registry.approve(bench.client, second, bench.run("promote"), "better")
    spoil(bench, first, VersionTag.GATE, Gate.APPROVED)  # as a process leaves it that was killed in between
    spoil(bench, second, VersionTag.APPROVED_AT, None)
    registry.approve(bench.client, third, bench.run("promote"), "best")
    assert [state(bench, version)[0] for version in (first, second)] == [Gate.SUPERSEDED] * 2
    registry.withhold(bench.client, first, bench.run("promote"), "bad")
    spoil(bench, first, VersionTag.GATE_REASON, None)
    with pytest.raises(BadInput, match="walk-expert/1: it was refused since: without a reason on record"):
        registry.roll_back(bench.client, first, bench.run("promote"), "why not")


# --- only an approved version may demonstrate ------------------------------------------------------------------------


def refused_expert(bench, version) -> str:
    with pytest.raises(BadInput) as caught:
        registry.require_approved(bench.version(version), "collect")
    return str(caught.value)


def test_a_pending_version_is_refused_by_name(bench):
    message = refused_expert(bench, bench.candidate())
    assert "expert walk-expert/1 is not approved (gate: pending)" in message
    assert "mlflow run . -e promote" in message


def test_a_refused_version_is_refused_by_name(bench):
    version = bench.candidate()
    registry.withhold(bench.client, version, bench.run("promote"), "bad")
    assert "walk-expert/1 is not approved (gate: refused)" in refused_expert(bench, version)


def test_a_superseded_version_is_refused_by_name(bench):
    first, second = bench.candidate(), bench.candidate(seed=2)
    registry.approve(bench.client, first, bench.run("promote"), "good")
    registry.approve(bench.client, second, bench.run("promote"), "better")
    assert "walk-expert/1 is not approved (gate: superseded)" in refused_expert(bench, first)


def test_an_alias_that_somebody_moved_by_hand_is_no_approval(bench):
    version = bench.candidate()
    bench.client.set_registered_model_alias(version.name, Alias.APPROVED, version.version)
    assert "not approved (gate: pending)" in refused_expert(bench, version)


def test_a_tag_that_somebody_set_by_hand_is_no_approval(bench):
    version = bench.candidate()
    bench.client.set_model_version_tag(version.name, version.version, VersionTag.GATE, Gate.APPROVED)
    assert "not approved" in refused_expert(bench, version)


def test_a_tainted_version_is_refused_with_the_reason(bench):
    version = bench.candidate()
    registry.approve(bench.client, version, bench.run("promote"), "good")
    bench.client.set_model_version_tag(version.name, version.version, VersionTag.TAINT, "trained on wrong data")
    assert "walk-expert/1 is tainted: trained on wrong data" in refused_expert(bench, version)


# --- roll back -------------------------------------------------------------------------------------------------------


def test_a_roll_back_gives_the_alias_back_and_is_recorded_as_a_new_period(bench):
    first, second = bench.candidate(), bench.candidate(seed=2)
    registry.approve(bench.client, first, bench.run("promote"), "good")
    registry.approve(bench.client, second, bench.run("promote"), "better")
    gate = bench.run("promote")
    moved = registry.roll_back(bench.client, first, gate, "the better one hits walls")
    assert (moved.version, moved.replaced) == ("1", "2")
    assert state(bench, first)[0] == Gate.APPROVED
    assert state(bench, second)[0] == Gate.SUPERSEDED
    assert approved_number(bench) == 1
    tags = bench.version(first).tags
    assert (tags[VersionTag.GATE_RUN_ID], tags[VersionTag.REPLACED]) == (gate, "2")
    assert bench.version(second).tags[VersionTag.REPLACED_BY] == "1"
    (first_since, first_until), (again_since, again_until) = history(bench, first)
    ((second_since, second_until),) = history(bench, second)
    assert first_since <= first_until == second_since <= second_until == again_since
    assert again_until is None


def test_the_history_of_approvals_has_no_overlap_and_no_gap(bench):
    first, second, third = (bench.candidate(seed=seed) for seed in (1, 2, 3))
    registry.approve(bench.client, first, bench.run("promote"), "a")
    registry.approve(bench.client, second, bench.run("promote"), "b")
    registry.roll_back(bench.client, first, bench.run("promote"), "c")
    registry.approve(bench.client, third, bench.run("promote"), "d")
    periods = datasets.approvals(bench.client, TASK, {})
    assert [p.version for p in periods] == ["1", "2", "1", "3"]
    assert [p.until for p in periods[:-1]] == [p.since for p in periods[1:]]
    assert periods[-1].until is None
    digests = {str(v.version): bench.version(v).tags[VersionTag.POLICY_DIGEST] for v in (first, second, third)}
    assert all(p.digest == digests[p.version] for p in periods)


@pytest.mark.parametrize("gate", [Gate.PENDING, Gate.REFUSED])
def test_a_version_that_was_never_approved_is_no_target_of_a_roll_back(bench, gate):
    approved, other = bench.candidate(), bench.candidate(seed=2)
    registry.approve(bench.client, approved, bench.run("promote"), "good")
    if gate == Gate.REFUSED:
        registry.withhold(bench.client, other, bench.run("promote"), "bad")
    with pytest.raises(BadInput, match=rf"roll back to walk-expert/2: it was never approved \(gate: {gate}\)"):
        registry.roll_back(bench.client, other, bench.run("promote"), "why not")
    assert approved_number(bench) == 1


def test_the_approved_version_is_no_target_of_a_roll_back(bench):
    version = bench.candidate()
    registry.approve(bench.client, version, bench.run("promote"), "good")
    with pytest.raises(BadInput, match="walk-expert/1: it is the approved version already"):
        registry.roll_back(bench.client, version, bench.run("promote"), "why not")
    assert len(datasets.approvals(bench.client, TASK, {})) == 1


def test_a_tainted_version_is_no_target_of_a_roll_back(bench):
    first, second = bench.candidate(), bench.candidate(seed=2)
    registry.approve(bench.client, first, bench.run("promote"), "good")
    registry.approve(bench.client, second, bench.run("promote"), "better")
    bench.client.set_model_version_tag(first.name, first.version, VersionTag.TAINT, "trained on wrong data")
    with pytest.raises(BadInput, match="walk-expert/1: it is tainted: trained on wrong data"):
        registry.roll_back(bench.client, first, bench.run("promote"), "why not")
    assert approved_number(bench) == 2


def test_a_version_that_was_refused_since_is_no_target_of_a_roll_back(bench):
    first, second = bench.candidate(), bench.candidate(seed=2)
    registry.approve(bench.client, first, bench.run("promote"), "good")
    registry.approve(bench.client, second, bench.run("promote"), "better")
    registry.withhold(bench.client, first, bench.run("promote"), "hits walls")
    with pytest.raises(BadInput, match="walk-expert/1: it was refused since: hits walls"):
        registry.roll_back(bench.client, first, bench.run("promote"), "why not")
    assert approved_number(bench) == 2


def test_a_taint_takes_the_approval_away_and_ends_its_period(bench):
    first, second = bench.candidate(), bench.candidate(seed=2)
    registry.approve(bench.client, first, bench.run("promote"), "good")
    assert registry.taint(bench.client, first.name, first.version, "cheated") is True
    assert registry.taint(bench.client, second.name, second.version, "cheated") is False
    assert registry.approved_version(bench.client, TASK) is None
    assert state(bench, first)[0] == Gate.REFUSED
    assert [period.until is None for period in datasets.approvals(bench.client, TASK, {})] == [False]


def test_tasks_do_not_share_experts(bench):
    version = bench.candidate()
    registry.approve(bench.client, version, bench.run("promote"), "good")
    assert registry.approved_version(bench.client, "swim") is None
    assert datasets.approvals(bench.client, "swim", {}) == ()


# --- what a person reads ---------------------------------------------------------------------------------------------


def test_a_version_says_where_it_comes_from_and_what_the_gate_found_last(bench):
    version = bench.candidate()
    registry.describe(bench.client, version, "2 of 6 checks failed\n\n| a table |\n")
    registry.describe(bench.client, bench.version(version), "all 6 checks hold")
    assert bench.version(version).description == "made for a test\n\n## What the gate found\nall 6 checks hold"
    registry.describe(bench.client, bench.version(version), "| a row |\n" * 2_000)
    text = bench.version(version).description
    assert text.startswith("made for a test\n\n## What the gate found\n| a row |\n")
    assert len(text) <= 5_000 and text.endswith("| a row |\n\n…")


def test_the_gate_asked_for_the_latest_takes_what_waits_alone(bench):
    first = bench.candidate()
    registry.approve(bench.client, first, bench.run("promote"), "good")
    with pytest.raises(BadInput, match="nothing waits for the gate; name a version to judge it again"):
        find_version(bench.client, "latest", TASK, Alias.CANDIDATE)
    assert int(find_version(bench.client, "1", TASK, Alias.CANDIDATE).version) == 1
    second = bench.candidate(seed=2)
    registry.withhold(bench.client, second, bench.run("promote", status="FAILED"), "hits walls")
    assert int(find_version(bench.client, "latest", TASK, Alias.CANDIDATE).version) == 2
