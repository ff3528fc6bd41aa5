"""The files of a new task as text with comments, from what a probe of its environment found.

Everything is written to be edited: what was measured stands beside what was chosen because of it.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any, Final

import numpy as np
from jinja2 import Template

from pipeline.config.loading import to_data
from pipeline.config.stages import NewTask
from pipeline.envs.parallel import SLOW_STEP
from pipeline.errors import printable
from pipeline.play.probing import BATCH, LONGEST, SUCCESS_KEYS, ElementSpread, Probe
from pipeline.report.text import environment
from pipeline.statistics.estimate import wilson_interval

COLLISION_KEYS: Final = ("collision", "is_collision", "collided", "crash", "crashed")
LEAST_RETURN: Final = 1e-3  # any reward, where most episodes have none
COLLISIONS: Final = 0.05
SHOWN_SHARE: Final = 0.1  # of the demonstrator's episodes are below what is guessed to solve the task
LARGE: Final = 10.0  # observations beyond this are scaled, smaller ones left as they are
LEAST_STD: Final = 0.1  # a feature that random actions hardly move is never blown up more than tenfold
MOST_FIGURES: Final = 8
_FIGURE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


def task_files(config: NewTask, probe: Probe) -> dict[str, str]:
    """Path below the folder of configs -> text: `tasks/<name>.yaml` and `<name>/<stage>.yaml`."""
    expert = [] if config.demonstrator else ["train_expert", "promote"]
    collision = _first_of(probe, COLLISION_KEYS)
    success = success_of(config, probe)
    taken = (success.get("info"), collision)
    text = _template(
        "task_files"
    ).render(
        config=config,
        env=" ".join(config.env.split()),
        task=f"{config.folder}/tasks/{config.name}.yaml",
        wrappers=[to_data(wrapper) for wrapper in config.wrappers],
        probe=probe,
        sizes=sizes(probe),
        scaling=None if config.demonstrator else _scaling(probe.spreads),  # clones of a script scale by what it shows
        success=success,
        target=target_of(config, probe, success),
        collision=collision,
        collisions=collisions_allowed(probe, collision),
        figures=[key for key in probe.final_keys if key not in taken and _FIGURE_NAME.fullmatch(key)][:MOST_FIGURES],
        stages=[*expert, "collect", "pretrain", "finetune", "compare"],
    )
    parts = re.split(r"^=== (\S+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def success_of(config: NewTask, probe: Probe) -> dict[str, Any]:
    """How an episode's success is told, and why: a key of the final info, or a guessed return."""
    key = _first_of(probe, SUCCESS_KEYS)
    if key is not None:
        low, high = probe.final_keys[key]
        return {"info": key, "why": f"Of the final info; the probe had {low:.4g} to {high:.4g}."}
    if probe.rewarded_at_end:
        why = "Only ends of episodes were rewarded: any reward is taken for success. SET IT where that is too little."
        return {"return_at_least": LEAST_RETURN, "why": why}
    if probe.shown is not None:
        # what most of its episodes reach, and more than random play has, where it reaches that at all
        better = probe.shown[probe.shown > probe.returns.max()]
        guess = _below(max([np.quantile(probe.shown, SHOWN_SHARE, method="lower"), *np.sort(better)[:1]]))
        reached = _sure(probe.shown >= guess)
        why = f"A GUESS: {config.demonstrator} reaches it in {reached}. SET IT to what solves the task."
    elif probe.reward_threshold is not None:
        guess = float(probe.reward_threshold)
        why = (
            "A GUESS: Gymnasium's threshold for this id, which is of a mean over 100 episodes: who just meets that "
            "misses it in many single ones. SET IT to what an episode must return."
        )
    else:
        best, spread = float(probe.returns.max()), float(probe.returns.std())
        guess = _rounded(best + max(spread, 0.1 * abs(best)))
        why = f"A GUESS above the best random episode ({best:.4g}): SET IT to what solves the task."
    return {"return_at_least": guess, "why": why}


def target_of(config: NewTask, probe: Probe, success: Mapping[str, Any]) -> dict[str, Any]:
    """What "solved" means for a policy, `{figure, min, why}`: never more than what the demonstrator itself reaches."""
    shown, threshold = probe.shown, probe.reward_threshold
    reached = "; nobody has shown that it is within reach"
    if shown is not None:
        reached = f"; {config.demonstrator} has a mean of {shown.mean():.4g} over {len(shown)}"
    if "info" not in success and threshold is not None and (shown is None or shown.mean() >= threshold):
        why = f"Gymnasium's own threshold for this id, of a mean over 100 episodes{reached}."
        return {"figure": "return_mean", "min": float(threshold), "why": why}
    if shown is None:
        return {"figure": "success_rate", "min": 0.9, "why": "A choice: nine of ten episodes."}
    succeeded = successes(probe, success)
    if not succeeded.any():
        least = _below(float(shown.mean() - 2 * shown.std() / np.sqrt(len(shown))))
        why = f"A GUESS: {config.demonstrator} never succeeds, so this is the return that it surely has."
        return {"figure": "return_mean", "min": least, "why": why}
    share = float(np.floor(90 * succeeded.mean()) / 100)
    why = f"Nine tenths of what {config.demonstrator} reaches: success in {_sure(succeeded)}."
    return {"figure": "success_rate", "min": share, "why": why}


def collisions_allowed(probe: Probe, key: str | None) -> float | None:
    """Largest share of episodes with a collision; more where the demonstrator has more. None: nothing tells them."""
    if key is None or probe.shown is None:
        return None if key is None else COLLISIONS
    share = float(np.mean([final.get(key, 0.0) > 0.5 for final in probe.shown_finals]))
    return COLLISIONS if share <= COLLISIONS else float(np.ceil(100 - 90 * (1 - share)) / 100)


def successes(probe: Probe, success: Mapping[str, Any]) -> np.ndarray:
    """(N,) bool: in which of the same episodes the demonstrator succeeded."""
    if "info" in success:
        return np.array([final.get(success["info"], 0.0) > 0.5 for final in probe.shown_finals])
    assert probe.shown is not None
    return np.asarray(probe.shown >= success["return_at_least"])


def summary(config: NewTask, probe: Probe, files: Sequence[str], untested: Sequence[str] = ()) -> tuple[str, ...]:
    """What was found, what was written, what to beware of, and what to do now (`templates/task_summary.txt`).

    `untested`: installed packages in other versions than were tested.
    """
    success = success_of(config, probe)
    gain = np.zeros(1) if probe.shown is None else probe.shown - probe.returns
    text = _template("task_summary", finalize=printable).render(
        config=config,
        probe=probe,
        sizes=sizes(probe),
        files=files,
        untested=untested,
        success=success,
        target=target_of(config, probe, success),
        succeeds=probe.shown is not None and successes(probe, success).any(),
        better=gain.mean() > 2 * gain.std() / np.sqrt(len(gain)),
        main=shlex.quote(f"{config.folder}/{config.name}/main.yaml"),
    )
    return tuple(text.splitlines())


def _sure(yes: np.ndarray) -> str:
    """`18 of 20 episodes (95 % interval 70 % to 97 %)`, by Wilson 1927."""
    share = wilson_interval(int(yes.sum()), len(yes))
    return f"{yes.sum()} of {len(yes)} episodes (95 % interval {100 * share.low:.0f} % to {100 * share.high:.0f} %)"


def _scaling(spreads: Mapping[str, ElementSpread]) -> dict[str, Any]:
    """Key of the observation -> the figures that scale it by what was measured, where it is large."""
    return {
        key or "all": {
            "offset": [_rounded(value) for value in spread.mean],
            "scale": [_rounded(max(value, LEAST_STD)) for value in spread.std],
        }
        for key, spread in spreads.items()
        if (np.abs(spread.mean) + 2 * spread.std > LARGE).any()
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _below(value: float) -> float:
    """Four figures, rounded down: 123.46 -> 123.4, -0.98765 -> -0.9877."""
    return float(Context(prec=4, rounding=ROUND_FLOOR).plus(Decimal(value)))


def _first_of(probe: Probe, keys: Sequence[str]) -> str | None:
    """The first of these keys whose values are yes or no."""
    return next((k for k in keys if k in probe.final_keys and set(probe.final_keys[k]) <= {0.0, 1.0}), None)


def _folded(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:100]}…"


def _template(name: str, **options: Any) -> Template:
    found = environment(**options)
    found.filters.update(yaml=json.dumps, folded=_folded, figure=lambda value: f"{value:.4g}")
    return found.get_template(f"{name}.txt")


# --- how long everything may be -------------------------------------------------------------------------------------

MINUTES = 6.0  # of the ten that trainings may take; loading, recording, cloning and the report have the rest
TRAININGS = 6.5  # three experts and two arms of five seeds, two at a time
ARMS, CLONES = 5.0, 5  # the arms alone; clones one after the other
EVALUATIONS = 15  # of a training
FEWEST_EPISODES, FINAL_EPISODES = 20, 100  # of an evaluation, and of the last one
UPDATES_PER_SECOND = 2_500.0  # steps of PPO's own work, two layers of 64, one core
BUDGETS = (20_480, 307_200)
LARGE_RETURN = 50.0  # beyond it rewards are normalised
ROLLOUT = 2_048
EPOCHS = 10  # of PPO over a rollout
ENVIRONMENTS = 16  # that a training makes: to train in and to be evaluated in
DRAWN = 6  # episodes of the report
ENCODING = 0.02  # seconds of a frame: annotated, beside others, compressed
OVERHEAD = 90.0  # seconds: loading, starting processes, the store, the report
CLONING_UPDATES, CLONING_EPOCHS = 2_000, (30, 400)  # gradient steps, however few demonstrations there are


@dataclass(frozen=True)
class Sizes:
    """Settings that a whole job of about ten minutes on two cores leaves room for, estimated from a probe."""

    horizon: int | None  # where nothing truncates an episode
    slow: bool  # do steps take so long that processes of environments pay
    n_envs: int
    n_steps: int
    timesteps: int  # of every training, expert and arms alike
    every_steps: int  # between evaluations
    evaluation_episodes: int
    demonstrations: int
    cloning_epochs: int
    noise: float
    large_returns: bool
    minutes: float  # that `main` may take with them

    @property
    def duration(self) -> str:
        return f"{self.minutes:.0f} minutes" if self.minutes < 120 else f"{self.minutes / 60:.0f} hours"


def sizes(probe: Probe) -> Sizes:
    """The settings that follow from a probe."""
    # a policy that can do more may last longer than random play
    horizon = None if probe.truncates else max(1_000, 2 * probe.longest)
    longest = 2 * probe.longest if probe.ended == len(probe.lengths) else horizon or LONGEST
    longest = probe.limit or longest
    speed = probe.steps_per_second

    def evaluating(episodes: int) -> float:  # seconds of a training
        return (EVALUATIONS * episodes + FINAL_EPISODES) * longest / speed

    step = 1 / speed + max(1 / UPDATES_PER_SECOND, EPOCHS * probe.updating / BATCH)
    budget = np.clip((60 * MINUTES / TRAININGS - evaluating(FEWEST_EPISODES)) / step, *BUDGETS)
    timesteps = int(budget) // ROLLOUT * ROLLOUT
    every = max(ROLLOUT, timesteps // EVALUATIONS // ROLLOUT * ROLLOUT)
    demonstrations = int(np.clip(40_000 / longest, 40, 200))
    batches = max(1.0, demonstrations * (probe.shown_steps or longest) / BATCH)  # of an epoch
    evaluated = int(np.clip(every / longest / 2, FEWEST_EPISODES, 100))  # half of what is trained between two
    epochs = int(np.clip(CLONING_UPDATES / batches, *CLONING_EPOCHS))
    trainings = TRAININGS if probe.shown is None else ARMS
    training = timesteps * step + evaluating(evaluated) + ENVIRONMENTS * probe.making
    # the critic learns for two thirds of the epochs; each of the two is half of a policy
    cloning = epochs * batches * probe.updating * 5 / 6 + (10 * evaluated + FINAL_EPISODES) * longest / speed
    recording = (3 * demonstrations + 2 * FINAL_EPISODES) * longest / speed  # replayed; the gate's and the shift's
    films = DRAWN * longest * (probe.drawing + ENCODING) if probe.renders else 0.0
    return Sizes(
        horizon=horizon,
        slow=speed * SLOW_STEP < 1,
        n_envs=8,
        n_steps=ROLLOUT // 8,
        timesteps=timesteps,
        every_steps=every,
        evaluation_episodes=evaluated,
        demonstrations=demonstrations,
        cloning_epochs=epochs,
        noise=probe.noise,
        large_returns=bool(np.abs(probe.returns).mean() > LARGE_RETURN),
        minutes=(trainings * training + CLONES * cloning + recording + films + OVERHEAD) / 60,
    )
