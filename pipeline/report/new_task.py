"""The files of a new task as text with comments, from what a probe of its environment found.

Everything is written to be edited: what was measured stands beside what was chosen because of it.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any, Final

import numpy as np

from pipeline.config.loading import to_data
from pipeline.config.stages import NewTask
from pipeline.data.observations import LARGEST_NUMBER, unscaled
from pipeline.play.probing import ElementSpread, Probe, Sizes

SUCCESS_KEYS: Final = ("is_success", "success", "reached_goal", "goal_reached")
COLLISION_KEYS: Final = ("collision", "is_collision", "collided", "crash", "crashed")
SCALER: Final = "pipeline.envs.scaling:ScaleObservation"
LEAST_RETURN: Final = 1e-3  # any reward, where most episodes have none
COLLISIONS: Final = 0.05
SHOWN_SHARE: Final = 0.1  # of the demonstrator's episodes are below what is guessed to solve the task
LARGE: Final = 10.0  # observations beyond this are scaled, smaller ones left as they are
LEAST_STD: Final = 0.1  # a feature that random actions hardly move is never blown up more than tenfold
MOST_FIGURES: Final = 8
_FIGURE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


def task_files(config: NewTask, probe: Probe, sizes: Sizes) -> dict[str, str]:
    """Path below the folder of configs -> text: `tasks/<name>.yaml` and `<name>/<stage>.yaml`."""
    expert = [] if config.demonstrator else ["train_expert", "promote"]
    collision = _first_of(probe, COLLISION_KEYS)
    success, scaler = success_of(config, probe), _scaler(probe.spreads)
    target = target_of(config, probe, success)
    text = _template().render(
        name=config.name,
        env=" ".join(config.env.split()),
        kwargs=config.kwargs,
        folder=config.folder,
        task=f"{config.folder}/tasks/{config.name}.yaml",
        demonstrator=config.demonstrator,
        wrappers=[to_data(wrapper) for wrapper in config.wrappers],
        probe=probe,
        sizes=sizes,
        scaler=scaler,
        scale=scaler["needed"] and not config.demonstrator,  # a script acts on what policies see
        success=success,
        target=target,
        collision=collision,
        collisions=collisions_allowed(probe, collision),
        figures=_further_figures(probe, (success.get("info"), collision)),
        stages=[*expert, "collect", "pretrain", "finetune", "compare"],
    )
    parts = re.split(r"^=== (\S+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def success_of(config: NewTask, probe: Probe) -> dict[str, Any]:
    """How an episode's success is told, and why: a key of the final info, or a return (`known` is False: a guess)."""
    key = _first_of(probe, SUCCESS_KEYS)
    if key is not None:
        low, high = probe.final_keys[key]
        return {"info": key, "known": True, "why": f"Of the final info; the probe had {low:.4g} to {high:.4g}."}
    if probe.rewarded_at_end:
        why = "Only ends of episodes were rewarded: any reward is taken for success. SET IT where that is too little."
        return {"return_at_least": LEAST_RETURN, "known": False, "why": why}
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
    return {"return_at_least": guess, "known": False, "why": why}


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


def summary(
    config: NewTask, probe: Probe, sizes: Sizes, files: Sequence[str], untested: Sequence[str] = ()
) -> tuple[str, ...]:
    """What was found, what was written, what to beware of, and what to do now.

    `untested`: installed packages in other versions than were tested.
    """
    success = success_of(config, probe)
    target = target_of(config, probe, success)
    means = f"info[{success['info']!r}]" if "info" in success else f"a return of {success['return_at_least']:g} or more"
    guessed = "" if success["known"] else ": A GUESS; set success.return_at_least to what solves the task"
    lines = [
        f"new_task: {config.name} is {config.env}: {len(probe.returns)} random episodes, return "
        f"{probe.returns.mean():.4g} ({probe.returns.min():.4g} to {probe.returns.max():.4g}), "
        f"{probe.lengths.mean():.0f} steps",
        f"  observes {_folded(probe.observation_space)}, acts in {_folded(probe.action_space)}",
        f"  wrote {config.folder}/{files[0]} and {len(files) - 1} stage configs in {config.folder}/{config.name}/",
        f"  success is {means}{guessed}",
        f"  solved is {target['figure']} of {target['min']:g} or more: {target['why']}",
    ]
    if probe.shown is not None:
        least, mean, most = probe.shown.min(), probe.shown.mean(), probe.shown.max()
        told = f"  {config.demonstrator} had a return of {mean:.4g} ({least:.4g} to {most:.4g}) in the same episodes"
        lines.insert(2, told)
    lines += [f"  WARNING: {warning}" for warning in _warnings(config, probe, success)]
    if untested:
        more = f" and {len(untested) - 3} more" if len(untested) > 3 else ""
        told = f"{', '.join(untested[:3])}{more}; see docs/own-task.md"
        lines.append(f"  WARNING: installed in other versions than were tested together: {told}")
    first = f"records {config.demonstrator}" if config.demonstrator else "trains an expert and puts it through the gate"
    main = shlex.quote(f"{config.folder}/{config.name}/main.yaml")
    command = f"mlflow run . -e main --env-manager local -P config={main}"
    lines.append(f"next: main {first} first, since cloning needs demonstrations; about {sizes.duration}:")
    return (*lines, f"  {command}")


def _warnings(config: NewTask, probe: Probe, success: Mapping[str, Any]) -> Iterator[str]:
    if not probe.repeatable:
        beside = " when another environment was played beside it (np.random, or other state that they share?)"
        yield (
            f"the same seed and actions did not give the same episode{beside if probe.alone else ''}; nothing will be "
            "replayed: let everything random follow from reset(seed=...), in a generator of the environment's own"
        )
    if probe.starts == 1:
        yield (
            "every episode starts with the same observation; if it goes on alike too, demonstrations are copies of "
            "each other, and validation refuses copies: let reset(seed=...) vary the start"
        )
    if probe.outside:
        yield f"observations leave their space: {probe.outside}; validation will quarantine recordings: mend the space"
    if probe.drawn:
        yield f"it declares pictures that cannot be drawn: {probe.drawn}; the report will show none"
    measured = (np.abs(spread.mean) + 2 * spread.std for spread in probe.spreads.values())
    if config.demonstrator and (unscaled(probe.observation_space) or any((m > LARGEST_NUMBER).any() for m in measured)):
        yield (
            f"observations are large and reach the network as they are, since {config.demonstrator} reads them so; the "
            "task file holds what would scale them, and the demonstrator would have to undo it"
        )
    if probe.shown is None:
        return
    if not successes(probe, success).any():
        yield f"{config.demonstrator} never succeeds in {len(probe.shown)} episodes: clones of it will not either"
    gain = probe.shown - probe.returns
    if gain.mean() <= 2 * gain.std() / np.sqrt(len(gain)):
        yield (
            f"{config.demonstrator} is not shown to be better than random play, which returns "
            f"{probe.returns.mean():.4g} in the same episodes: there is nothing in it to learn"
        )
    if "info" not in success and probe.reward_threshold is not None and probe.shown.mean() < probe.reward_threshold:
        yield (
            f"Gymnasium's threshold {probe.reward_threshold:g} for this id is above what {config.demonstrator} "
            f"reaches, {probe.shown.mean():.4g}; it is not used"
        )


def _sure(yes: np.ndarray) -> str:
    """`18 of 20 episodes (95 % interval 70 % to 97 %)`, by Wilson 1927."""
    from scipy.stats import binomtest  # late: half a second

    ends = binomtest(int(yes.sum()), len(yes)).proportion_ci(method="wilson")
    return f"{yes.sum()} of {len(yes)} episodes (95 % interval {100 * ends.low:.0f} % to {100 * ends.high:.0f} %)"


def _scaler(spreads: Mapping[str, ElementSpread]) -> dict[str, Any]:
    """The wrapper that scales observations by what was measured (None: there is nothing to scale); is it needed."""
    if not spreads:
        return {"wrapper": None, "needed": False}
    mean = {key: [_rounded(value) for value in spread.mean] for key, spread in spreads.items()}
    std = {key: [_rounded(max(value, LEAST_STD)) for value in spread.std] for key, spread in spreads.items()}
    figures = {"mean": mean[""], "std": std[""]} if "" in spreads else {"mean": mean, "std": std}
    return {
        "wrapper": {"name": SCALER, "kwargs": {**figures, "clip": 10.0}},
        "needed": any((np.abs(spread.mean) + 2 * spread.std > LARGE).any() for spread in spreads.values()),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _below(value: float) -> float:
    """Four figures, rounded down: 123.46 -> 123.4, -0.98765 -> -0.9877."""
    return float(Context(prec=4, rounding=ROUND_FLOOR).plus(Decimal(value)))


def _first_of(probe: Probe, keys: Sequence[str]) -> str | None:
    """The first of these keys whose values are yes or no."""
    return next((k for k in keys if k in probe.final_keys and set(probe.final_keys[k]) <= {0.0, 1.0}), None)


def _further_figures(probe: Probe, taken: Sequence[str | None]) -> list[str]:
    return [key for key in probe.final_keys if key not in taken and _FIGURE_NAME.fullmatch(key)][:MOST_FIGURES]


def _folded(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:100]}…"


def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # late: no other stage writes YAML by template

    environment = Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(yaml=json.dumps, folded=_folded, figure=lambda value: f"{value:.4g}")
    return environment.get_template("new_task.txt")
