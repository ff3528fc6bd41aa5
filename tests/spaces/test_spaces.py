"""Spaces survive JSON bit for bit, and hostile JSON is refused in one line."""

import json

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.spaces import MAX_ELEMENTS, space_from_json, space_to_json
from pipeline.errors import BadInput


def same_bits(a: spaces.Space, b: spaces.Space) -> bool:
    """Stricter than gymnasium's `==`, which compares bounds with a tolerance."""
    if type(a) is not type(b) or a.dtype != b.dtype or a.shape != b.shape:
        return False
    if isinstance(a, spaces.Box):
        pairs = (
            (a.low, b.low),
            (a.high, b.high),
            (a.bounded_below, b.bounded_below),
            (a.bounded_above, b.bounded_above),
        )
        return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)
    if isinstance(a, spaces.Dict):
        return list(a.spaces) == list(b.spaces) and all(same_bits(a[key], b[key]) for key in a.spaces)
    return a == b


SPACES = [
    spaces.Box(-1, 1, (2,), np.float32),
    spaces.Box(-np.inf, np.inf, (3,), np.float64),
    spaces.Box(np.array([-1, -np.inf, 0.1], np.float32), np.array([np.inf, 2, 0.3], np.float32)),
    spaces.Box(np.float64(np.pi) * np.ones((2, 2)), np.arange(4.0, 8.0).reshape(2, 2), dtype=np.float64),
    spaces.Box(0, 255, (84, 84, 3), np.uint8),
    spaces.Box(-(2**63), 2**63 - 2, (1,), np.int64),
    spaces.Box(-np.inf, np.inf, (2,), np.int32),
    spaces.Box(np.array([-0.0, 0.0], np.float32), np.ones(2, np.float32)),
    spaces.Box(0, 1, (3,), np.bool_),
    spaces.Box(0, 1, (), np.float32),
    spaces.Discrete(4),
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete([2, 3, 4]),
    spaces.MultiDiscrete([[2, 3], [4, 5]], dtype=np.int32, start=[[0, 1], [-2, 3]]),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
    spaces.Dict({"z": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Box(0, 1, (1,))})}),
    spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Discrete(3))]),
]


def test_a_space_survives_strict_json_bit_for_bit():
    for space in SPACES:
        text = json.dumps(space_to_json(space), allow_nan=False)
        assert same_bits(space_from_json(json.loads(text)), space), space


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False)] * 2), min_size=1, max_size=5))
def test_any_float32_bounds_survive(pairs):
    low, high = (np.array([f(pair) for pair in pairs], np.float32) for f in (min, max))
    space = spaces.Box(low, high)
    assert same_bits(space_from_json(json.loads(json.dumps(space_to_json(space), allow_nan=False))), space)


def test_other_kinds_of_space_are_refused_by_name():
    for space in (spaces.Text(4), spaces.Tuple([spaces.Discrete(2)]), spaces.Sequence(spaces.Discrete(2))):
        with pytest.raises(BadInput, match=f"{type(space).__name__}.*Box, Discrete"):
            space_to_json(space)


BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": -1.0, "high": 1.0}
NESTED: dict = {"type": "Discrete", "n": 2, "start": 0}
for _ in range(50):
    NESTED = {"type": "Dict", "spaces": [["a", NESTED]]}


WRONG = [
    None, [], "Box", {}, {"type": "Pickle"}, {"type": ["Box"]}, {"type": "Box"},
    {**BOX, "extra": 1}, {**BOX, "dtype": "object"}, {**BOX, "dtype": "O"}, {**BOX, "shape": [10**9]},
    {**BOX, "shape": [MAX_ELEMENTS, 2]}, {**BOX, "shape": [-1]}, {**BOX, "shape": [True]}, {**BOX, "shape": "2"},
    {**BOX, "low": [0.0]}, {**BOX, "low": float("nan")}, {**BOX, "low": float("inf")}, {**BOX, "low": 2.0},
    {**BOX, "low": 1e60}, {**BOX, "low": "zero"}, {**BOX, "low": {}}, {**BOX, "dtype": "uint8", "high": 256},
    {**BOX, "dtype": "uint8", "low": [0, "-inf"], "high": 9}, {**BOX, "dtype": "uint8", "low": "-inf", "high": 1},
    {"type": "Discrete", "n": 0, "start": 0}, {"type": "Discrete", "n": 2.0, "start": 0},
    {"type": "Discrete", "n": 10**30, "start": 0}, {"type": "Discrete", "n": 300, "start": 0, "dtype": "uint8"},
    {"type": "MultiDiscrete", "dtype": "int64", "shape": [2], "nvec": [2], "start": [0, 0]},
    {"type": "MultiDiscrete", "dtype": "float32", "shape": [1], "nvec": [2], "start": [0]},
    {"type": "MultiBinary", "shape": [2, 3], "scalar": True}, {"type": "MultiBinary", "shape": [0], "scalar": True},
    {"type": "Dict", "spaces": [["a", NESTED], ["a", NESTED]]}, {"type": "Dict", "spaces": [["a"]]}, NESTED,
    {**BOX, "low": 0.1}, {**BOX, "low": [-1.0, -1.0]}, {**BOX, "low": "nan"}, {**BOX, "low": True},  # not as we write
]  # fmt: skip


def test_hostile_or_wrong_json_is_refused_in_one_line():
    for data in WRONG:
        with pytest.raises(BadInput) as error:
            space_from_json(data)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600, str(data)[:60]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["Box", "Dict", "float32", "inf"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "dtype", "shape", "low", "high", "n", "start", "spaces"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(_JSON)
def test_random_json_is_a_space_or_bad_input(data):
    try:
        space = space_from_json(data)
    except BadInput:
        return
    assert isinstance(space, spaces.Space)
