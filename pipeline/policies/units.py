"""Units: a policy computes with numbers of unit size, and reads and answers in those of its task.

    scaling = measured_scaling(observation_space, action_space, network, settings, trajectories, episodes)
    policy = build_policy(observation_space, action_space, network, seed, scaling)

`(observation - offset) / scale` stands between the features extractor and the first layer, `offset + scale * output`
behind the last, element by element, so that a row's bits follow from that row alone. The figures are tensors of the
policy. Nothing stands there where nothing is scaled: such a policy is SB3's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space

from pipeline.config.training import AffineFigures, Network, ScalingSettings
from pipeline.data import Trajectories
from pipeline.data.observations import LARGEST_NUMBER, LARGEST_WHOLE, WIDEST_SPAN, span_of
from pipeline.errors import BadInput, shortened
from pipeline.files import digest

USED_SPAN: Final = 0.5  # share of the range between its bounds that demonstrations cover, for these to be its scale
WIDEST_DEVIATION: Final = 10.0  # of a demonstrated number, in units of its scale
CONSTANT: Final = 1e-6  # range of a number, as a share of itself, that float32 does not tell from none
LARGEST_ACTION: Final = 10.0  # bound that Gaussian noise of standard deviation 1 still explores
NOTHING_GIVEN: Final = ScalingSettings()


@dataclass(frozen=True, eq=False)
class Affine:
    """`raw = offset + scale * number`, element by element. Raises BadInput for what float32 cannot divide by."""

    offset: np.ndarray  # (n,) float32
    scale: np.ndarray  # (n,) float32, above 0
    clip: float = np.inf  # of observations: numbers inside go no further than this, as behind a `VecNormalize`

    def __post_init__(self) -> None:
        if not (np.isfinite(self.offset).all() and np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise BadInput("scaling: an offset or a scale is not finite in float32, or a scale is not above 0")

    def inward(self, raw: np.ndarray) -> np.ndarray:
        """(rows, n) float32 in the units of the task -> of unit size."""
        numbers = np.asarray((raw - self.offset) / self.scale)
        return np.clip(numbers, -self.clip, self.clip, dtype=numbers.dtype) if np.isfinite(self.clip) else numbers

    def outward(self, numbers: np.ndarray) -> np.ndarray:
        """The inverse of `inward`, where that cuts nothing."""
        return np.asarray(self.offset + self.scale * numbers)


@dataclass(frozen=True, eq=False)
class Scaling:
    """The units of a policy; None: as they are. False as a condition when it changes nothing."""

    observations: Affine | None = None  # of what the first layer reads, where one-hot numbers and a CNN's stay
    actions: Affine | None = None  # of Box actions, in C order

    def __bool__(self) -> bool:
        return self.observations is not None or self.actions is not None

    @property
    def digest(self) -> str:
        """36 hex characters over all figures: equal exactly when these are."""
        both = (self.observations, self.actions)
        parts = [b"none;" if a is None else a.offset.tobytes() + a.scale.tobytes() + b";" for a in both]
        return digest(*parts, *(f"clip {a.clip}" for a in both if a is not None and np.isfinite(a.clip)))

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Its figures, for people: `{"actions": {"offset": [256.0], "scale": [256.0]}}`."""
        return {
            name: {
                "offset": affine.offset.tolist(),
                "scale": affine.scale.tolist(),
                **({"clip": affine.clip} if np.isfinite(affine.clip) else {}),
            }
            for name, affine in vars(self).items()
            if affine is not None
        }


UNSCALED: Final = Scaling()

OffsetAndScale = tuple[np.ndarray, np.ndarray]  # offset and scale, (n,) float64 each
# of a key of the observation, "" where it has none; None: actions
Source = Callable[[str | None, spaces.Box], OffsetAndScale]


def measured_scaling(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    network: Network,
    settings: ScalingSettings,
    data: Trajectories,
    episodes: np.ndarray,
) -> Scaling:
    """The figures that are given, and for the rest those of the demonstrations, of some episodes (n,) int64.

    By element: a number that covers half the range between its bounds by these; any other by its mean and standard
    deviation, but never so that a demonstrated one is beyond 10; one that never changes by its bounds or, where it has
    none, by itself and 1. A Box within [-1, 1] stays as it is.
    Raises BadInput, naming the setting, for given figures that do not fit the spaces.
    """
    chosen = np.zeros(len(data), bool)
    chosen[episodes] = True

    def figures(key: str | None, space: spaces.Box) -> OffsetAndScale:
        low, high, span = _bounds(space)
        if (low >= -1).all() and (high <= 1).all():
            return np.zeros(len(low)), np.ones(len(low))
        if key is None:
            rows = data.actions[np.repeat(chosen, data.lengths)]
        else:
            rows = (data.observations[key] if key else data.observations)[
                np.repeat(chosen, data.lengths + data.final_rows)
            ]
        values = rows.reshape(len(rows), -1)
        smallest, largest = values.min(axis=0).astype(np.float64), values.max(axis=0).astype(np.float64)
        mean, std = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
        std = np.maximum(std, np.maximum(largest - mean, mean - smallest) / WIDEST_DEVIATION)
        constant = largest - smallest <= CONSTANT * np.maximum(np.abs(smallest), np.abs(largest))
        by_bounds = np.where(constant, span <= WIDEST_SPAN, largest - smallest >= USED_SPAN * span)
        return _by_bounds(by_bounds, low, high, (np.where(constant, smallest, mean), np.where(constant, 1.0, std)))

    return _assembled(observation_space, action_space, network, settings, figures)


def _in_shape(setting: str, figures: tuple[float, ...], space: spaces.Box) -> np.ndarray:
    """(n,) float64."""
    size = int(np.prod(space.shape))
    if len(figures) not in (1, size):
        raise BadInput(
            f"{setting} has {len(figures)} figures, the space {shortened(space)} has {size} numbers; give one figure "
            "for all, or one each"
        )
    return np.full(size, figures, np.float64)


def scaling_by_bounds(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    network: Network,
    settings: ScalingSettings = NOTHING_GIVEN,
) -> Scaling:
    """Without demonstrations: the figures that are given, for the rest bounds that say that numbers are large.

    Large are whole numbers beyond 10, other ones beyond 100, and actions beyond 10; all else stays as it is. Raises
    BadInput as `measured_scaling` does.
    """

    def where_large(key: str | None, space: spaces.Box) -> OffsetAndScale:
        low, high, span = _bounds(space)
        limit = LARGEST_WHOLE if space.dtype.kind in "iu" else LARGEST_NUMBER
        large = np.maximum(np.abs(low), np.abs(high)) > (LARGEST_ACTION if key is None else limit)
        return _by_bounds(large & (span <= WIDEST_SPAN), low, high, (np.zeros(len(low)), np.ones(len(low))))

    return _assembled(observation_space, action_space, network, settings, where_large)


def blank_scaling(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    network: Network,
    scaled: tuple[str, ...],
    clip: float | None = None,
) -> Scaling:
    """With room for the figures of an artifact whose `scaled` names `observations` or `actions`, or both."""

    def room(size: int, clip: float | None = None) -> Affine:
        return Affine(np.zeros(size, np.float32), np.ones(size, np.float32), np.inf if clip is None else clip)

    offsets, _ = _features(observation_space, network, lambda _, box: (np.zeros(box.shape).ravel(),) * 2)
    return Scaling(
        room(len(offsets), clip) if "observations" in scaled else None,
        room(int(np.prod(action_space.shape or ()))) if "actions" in scaled else None,
    )


def _bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low, high and the span between them, (n,) float64 each."""
    return space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64), span_of(space).ravel()


def _by_bounds(which: np.ndarray, low: np.ndarray, high: np.ndarray, others: OffsetAndScale) -> OffsetAndScale:
    """The bounds of those elements become -1 and 1; figures of the others."""
    with np.errstate(invalid="ignore", over="ignore"):  # of bounds that are not taken
        return np.where(which, (low + high) / 2, others[0]), np.where(which, (high - low) / 2, others[1])


def _features(space: gym.Space[Any], network: Network, source: Source) -> OffsetAndScale:
    """Figures of all that the first layer reads, in the order of SB3's extractors; what is no number stays."""
    found = []
    for key, part in (space.spaces if isinstance(space, spaces.Dict) else {"": space}).items():
        if isinstance(part, spaces.Box) and not is_image_space(part):
            found.append(source(key, part))
        else:
            width = network.image_features if is_image_space(part) else get_flattened_obs_dim(part)
            found.append((np.zeros(width), np.ones(width)))
    return np.concatenate([offset for offset, _ in found]), np.concatenate([scale for _, scale in found])


def _assembled(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    network: Network,
    settings: ScalingSettings,
    source: Source,
) -> Scaling:
    """Figures that are given, and those of the source, unless what is not given stays as it is."""
    given = {f"observations.{key}": one for key, one in settings.observations.items()}
    if settings.actions is not None:
        given["actions"] = settings.actions

    def chosen(key: str | None, space: spaces.Box) -> OffsetAndScale:
        setting = "actions" if key is None else f"observations.{key or 'all'}"
        one: AffineFigures | None = given.pop(setting, None)
        if one is not None:
            where = f"scaling.{setting}"
            return _in_shape(f"{where}.offset", one.offset, space), _in_shape(f"{where}.scale", one.scale, space)
        size = int(np.prod(space.shape))
        return source(key, space) if settings.measured else (np.zeros(size), np.ones(size))

    def affine(figures: OffsetAndScale) -> Affine | None:
        with np.errstate(over="ignore"):
            made = Affine(figures[0].astype(np.float32), figures[1].astype(np.float32))
        return made if made.offset.any() or (made.scale != 1).any() else None

    scaling = Scaling(
        affine(_features(observation_space, network, chosen)),
        affine(chosen(None, action_space)) if isinstance(action_space, spaces.Box) else None,
    )
    for setting in given:
        space = action_space if setting == "actions" else observation_space
        raise BadInput(f"scaling.{setting} is of no numbers of {shortened(space)}; remove it, or name another key")
    return scaling
