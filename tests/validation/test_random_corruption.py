"""Random damage to a dataset is never accepted, never a traceback, and never runs code."""

from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pendulum_dataset import NOISE, act, describe

from pipeline.data import arrays_digest, metadata_digest, read_archive, read_metadata, write_dataset
from pipeline.errors import BadInput
from pipeline.report.text import markdown_page
from pipeline.validation.rules import validate

pytestmark = pytest.mark.slow
BUDGET = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def written(good, tmp_path_factory) -> Path:
    """A good dataset of 6 episodes on disk, and what is in its files."""
    few = good.trajectories.select(range(6))
    left_out = tuple(good.trajectories.seeds[6:].tolist())
    folder = tmp_path_factory.mktemp("random") / "data"
    metadata = describe(good.task, few, NOISE, left_out=left_out, requested_episodes=30)
    write_dataset(folder, few.to_arrays(), metadata.to_data())
    return folder


def content(folder: Path) -> tuple[str, str]:
    return arrays_digest(read_archive(folder / "trajectories.npz")), metadata_digest(
        read_metadata(folder / "metadata.json")
    )


def context_of(good, folder: Path, **changes):
    digest = read_metadata(folder / "metadata.json")["content_digest"]
    return replace(good.context, min_episodes=6, expected_digest=digest, **changes)


def copy_with(folder: Path, target: Path, name: str, damaged: bytes) -> Path:
    target.mkdir(exist_ok=True)
    for part in ("trajectories.npz", "metadata.json"):
        (target / part).write_bytes(damaged if part == name else (folder / part).read_bytes())
    return target


def test_the_undamaged_dataset_passes(good, written):
    assert validate(written, context_of(good, written)).passed


@pytest.mark.parametrize("name", ["trajectories.npz", "metadata.json"])
def test_damaged_bytes_are_refused_or_change_nothing(name, good, written, tmp_path):
    whole, original, context = (written / name).read_bytes(), content(written), context_of(good, written)

    @BUDGET
    @given(st.data())
    def damage(data):
        damaged = bytearray(whole)
        # the end of an archive is its directory, where damage is most telling
        near_end = st.integers(max(0, len(whole) - 1500), len(whole) - 1)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(whole) - 1) | near_end)
            damaged[at] = data.draw(st.integers(0, 255))
        cut = data.draw(st.none() | st.integers(0, len(whole)))
        target = copy_with(written, tmp_path / "damaged", name, bytes(damaged[:cut]))
        report = validate(target, context)
        assert report.to_json() and markdown_page("validation", report=report)
        if report.passed:  # the damage hit a byte without meaning, such as a date in the zip directory
            assert content(target) == original

    damage()


def test_a_changed_number_is_refused_whoever_seals_it(good, written, tmp_path):
    """Digests fitting again, as a careful forger has them: re-simulation and consistency must tell."""
    arrays, metadata = read_archive(written / "trajectories.npz"), read_metadata(written / "metadata.json")
    context = replace(good.context, min_episodes=6, act=act, replay=good.replay, replay_episodes=6)
    numbers = sorted(name for name in arrays if name != "scenarios")

    @BUDGET
    @given(st.data())
    def forge(data):
        name = data.draw(st.sampled_from(numbers))
        forged = {**arrays, name: arrays[name].copy()}
        flat = forged[name].reshape(-1).view(np.uint8)
        at, bit = data.draw(st.integers(0, len(flat) - 1)), data.draw(st.integers(0, 7))
        if forged[name].dtype == bool:
            flat[at] ^= 1
        else:
            flat[at] ^= np.uint8(1 << bit)
        sealed = {**metadata, "content_digest": arrays_digest(forged)}
        sealed["metadata_digest"] = metadata_digest(sealed)
        folder = Path(mkdtemp(dir=tmp_path))
        write_dataset(folder, forged, sealed)
        report = validate(folder, context)
        harmless = _within_rounding(name, arrays[name], forged[name])
        assert not report.passed or harmless, (name, at, bit)

    forge()


def _within_rounding(name: str, before: np.ndarray, after: np.ndarray) -> bool:
    """What no rule can see, because it changes nothing: a rounding error of a return, a label, or a torque."""
    if name == "metric.return":
        return bool(np.allclose(before, after, rtol=1e-4, atol=1e-3))
    if name == "metric.success":
        return bool((before == after).all())  # -0.0 is one bit from 0
    tolerance = {"actions": 2e-3, "executed_actions": 1e-5}.get(name, 0.0)
    return tolerance > 0 and bool((np.abs(after - before) <= tolerance).all())


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def test_random_metadata_never_breaks_the_validation(good, written, tmp_path):
    """Any JSON under any key, sealed: a report, whatever it says, and no exception."""
    arrays, metadata = read_archive(written / "trajectories.npz"), read_metadata(written / "metadata.json")

    @BUDGET
    @given(st.dictionaries(st.sampled_from(sorted(metadata)) | st.text(max_size=4), _VALUES, min_size=1, max_size=3))
    def replace_keys(changes):
        forged = {**metadata, **changes}
        forged.setdefault("content_digest", "")
        forged["metadata_digest"] = metadata_digest(forged)
        folder = Path(mkdtemp(dir=tmp_path))
        try:
            write_dataset(folder, arrays, forged)
        except (BadInput, ValueError):
            return
        report = validate(folder, context_of(good, written))
        assert report.to_json() and markdown_page("validation", report=report)

    replace_keys()


def test_random_shapes_and_dtypes_never_break_the_validation(good, written, tmp_path):
    arrays, metadata = read_archive(written / "trajectories.npz"), read_metadata(written / "metadata.json")
    shapes = st.lists(st.integers(0, 6), max_size=3).map(tuple)
    kinds = st.sampled_from(["f4", "f8", "i8", "u1", "b1", "U3", "f2"])

    @BUDGET
    @given(st.dictionaries(st.sampled_from(sorted(arrays)), st.tuples(shapes, kinds), min_size=1, max_size=4))
    def reshape(changes):
        folder = Path(mkdtemp(dir=tmp_path))
        forged = {**arrays, **{name: np.ones(shape, kind) for name, (shape, kind) in changes.items()}}
        sealed = {**metadata, "content_digest": arrays_digest(forged)}
        sealed["metadata_digest"] = metadata_digest(sealed)
        write_dataset(folder, forged, sealed)
        report = validate(folder, replace(good.context, min_episodes=0, replay=good.replay))
        assert not report.passed and report.to_json() and markdown_page("validation", report=report)

    reshape()
