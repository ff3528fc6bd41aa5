"""The films of a comparison: the same episodes under several policies side by side, chosen by a rule and not by eye."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from pipeline.envs.episodes import Episode
from pipeline.names import Metric
from pipeline.play.demonstrators import Actor
from pipeline.play.evaluation import RATES
from pipeline.play.filming import film
from pipeline.play.rollouts import from_actor
from pipeline.report.clips import Clip, side_by_side, with_poster
from pipeline.report.context import Animation
from pipeline.tasks import Task

PLAYBACK_FPS: Final = 10.0
MOST_FRAMES: Final = 150  # one of a longer episode shows fewer of its steps
MOST_PIXELS: Final = 360  # width and height of each picture
Played = Mapping[str, Mapping[str, np.ndarray]]  # scenario set -> figure -> (E,)


def median_of(values: Sequence[float] | np.ndarray) -> int:
    """Index of the median; the lower one of two, the earlier of equals."""
    return int(np.argsort(values, kind="stable")[(len(values) - 1) // 2])


def episodes_to_show(played: Played) -> list[tuple[str, str, int]]:
    """(why, scenario set, index) by the rule: of the first set the episodes of median and of least return and the first
    failure, of every other set that of median return.

    One episode is shown once, under the first of its reasons.
    """
    chosen: dict[tuple[str, int], str] = {}
    for scenario_set, figures in played.items():
        returns = figures[Metric.RETURN_MEAN]
        chosen.setdefault((scenario_set, median_of(returns)), "median return")
        if scenario_set == next(iter(played)):
            chosen.setdefault((scenario_set, int(np.argsort(returns, kind="stable")[0])), "least return")
            for failed in np.flatnonzero(figures[Metric.SUCCESS_RATE] == 0)[:1]:
                chosen.setdefault((scenario_set, int(failed)), "first failure")
    return [(why, *where) for where, why in chosen.items()]


def comparison_films(
    task: Task,
    episodes: Mapping[str, Sequence[Episode]],
    policies: Mapping[str, tuple[Actor, Played]],
    about: str,
    count: int,
) -> tuple[Animation, ...]:
    """At most `count` films of what `episodes_to_show` says of the last of the policies, which are named by label.

    `episodes`: scenario set -> those that the figures are of; `about` ends the captions.
    """
    *_, (label, (_, judged)) = policies.items()
    animations = []
    for why, scenario_set, index in episodes_to_show(judged)[:count]:
        episode, clips, ends = episodes[scenario_set][index], list[Clip](), list[str]()
        for name, (actor, played) in policies.items():
            length = int(played[scenario_set][Metric.LENGTH_MEAN][index])
            seen = film(task, episode, from_actor(actor, task.action_space), MOST_FRAMES, MOST_PIXELS, length)
            statistics = {"return": f"{seen.episode_return:.2f}"}
            clips.append(Clip(name, seen.frames, statistics, seen.events, steps=seen.steps))
            figures = played[scenario_set]
            outcomes = (outcome for outcome, rate in RATES.items() if rate in figures and figures[rate][index])
            ends.append(f"{name}: {next(outcomes, 'no success')} after {len(seen.rewards)} steps")
        title = f"{why[0].upper()}{why[1:]} of the {label} policy on {scenario_set}"
        caption = f"{'; '.join(ends)}. Scenario {episode.scenario}, episode seed {episode.seed}, {about}."
        animations.append(Animation(title, caption, *with_poster(side_by_side(clips), PLAYBACK_FPS)))
    return tuple(animations)
