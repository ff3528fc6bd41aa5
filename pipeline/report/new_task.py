"""The files of a new task as text with comments, from what a probe of its environment found.

Everything is written to be edited: what was measured stands beside what was chosen because of it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from pipeline.config.loading import to_data
from pipeline.config.stages import NewTask
from pipeline.probing import Probe, Sizes, Spread

SUCCESS_KEYS: Final = ("is_success", "success", "reached_goal", "goal_reached")
COLLISION_KEYS: Final = ("collision", "is_collision", "collided", "crash", "crashed")
SCALER: Final = "pipeline.envs.scaling:ScaleObservation"
LEAST_RETURN: Final = 1e-3  # any reward, where most episodes have none
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
        collision=collision,
        figures=_further_figures(probe, (success.get("info"), collision)),
        stages=[*expert, "collect", "pretrain", "finetune", "compare"],
    )
    parts = re.split(r"^=== (\S+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def success_of(config: NewTask, probe: Probe) -> dict[str, Any]:
    """How success is told, and why: a key of the final info, or a return, which may be a guess (`known` is False)."""
    best, spread = float(probe.returns.max()), float(probe.returns.std())
    key, threshold = _first_of(probe, SUCCESS_KEYS), probe.reward_threshold
    if key is not None:
        low, high = probe.final_keys[key]
        return {"info": key, "known": True, "why": f"Of the final info; the probe had {low:.4g} to {high:.4g}."}
    if threshold is not None:
        return {"return_at_least": float(threshold), "known": True, "why": "Gymnasium's own threshold for this id."}
    if probe.rewarded_at_end:
        why = "Only ends of episodes were rewarded: any reward is taken for success. SET IT where that is too little."
        return {"return_at_least": LEAST_RETURN, "known": False, "why": why}
    if probe.shown is not None:
        guess = float(np.quantile(probe.shown, SHOWN_SHARE))
        why = f"A GUESS: what {config.demonstrator} reaches in nine of ten episodes. SET IT to what solves the task."
    else:
        guess = best + max(spread, 0.1 * abs(best))
        why = f"A GUESS above the best random episode ({best:.4g}): SET IT to what solves the task."
    return {"return_at_least": _rounded(guess), "known": False, "why": why}


def summary(config: NewTask, probe: Probe, sizes: Sizes, files: Sequence[str]) -> tuple[str, ...]:
    """What was found, what was written, and what to do now."""
    success = success_of(config, probe)
    means = f"info[{success['info']!r}]" if "info" in success else f"a return of {success['return_at_least']:g} or more"
    guessed = "" if success["known"] else ": A GUESS; set success.return_at_least to what solves the task"
    lines = [
        f"new_task: {config.name} is {config.env}: {len(probe.returns)} random episodes, return "
        f"{probe.returns.mean():.4g} ({probe.returns.min():.4g} to {probe.returns.max():.4g}), "
        f"{probe.lengths.mean():.0f} steps",
        f"  observes {_folded(probe.observation_space)}, acts in {_folded(probe.action_space)}",
        f"  wrote {config.folder}/{files[0]} and {len(files) - 1} stage configs in {config.folder}/{config.name}/",
        f"  success is {means}{guessed}",
    ]
    if probe.shown is not None:
        least, mean, most = probe.shown.min(), probe.shown.mean(), probe.shown.max()
        told = f"  {config.demonstrator} had a return of {mean:.4g} ({least:.4g} to {most:.4g}) in the same episodes"
        lines.insert(2, told)
    if not probe.repeatable:
        lines.append("  WARNING: the same seed and actions did not give the same episode; nothing will be replayed")
    if probe.starts == 1:
        lines.append(
            "  WARNING: every episode starts with the same observation; if it goes on alike too, demonstrations are "
            "copies of each other, and validation refuses copies: let reset(seed=...) vary the start"
        )
    first = f"records {config.demonstrator}" if config.demonstrator else "trains an expert and puts it through the gate"
    command = f"mlflow run . -e main --env-manager local -P config={config.folder}/{config.name}/main.yaml"
    lines.append(f"next: main {first} first, since cloning needs demonstrations; about {sizes.minutes:.0f} minutes:")
    return (*lines, f"  {command}")


def _scaler(spreads: Mapping[str, Spread]) -> dict[str, Any]:
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
