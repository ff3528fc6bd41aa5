"""What happens around a stage (open its run, load its config) and across stages (`main`)."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, Final, TypeVar

from pipeline.config.loading import load, load_task, to_data, validate
from pipeline.config.stages import STAGE_CONFIGS, Collect, Compare, Finetune, Main, Pretrain, Promote, TrainExpert
from pipeline.config.training import LearningRate
from pipeline.errors import BadInput, printable, say
from pipeline.names import OUTPUT_PREFIX, REUSED_PREFIX, Artifact, Tag
from pipeline.stages import StageOutcome
from pipeline.stages.reproduce import reproduce
from pipeline.tracking import registry
from pipeline.tracking.content_key import content_key, digest_of, package_code
from pipeline.tracking.groups import common_group
from pipeline.tracking.models import find_version
from pipeline.tracking.reuse import Found, find_finished
from pipeline.tracking.runs import StageRun, end_failed, open_run, read_text_artifact
from pipeline.tracking.spool import deliver_leftovers
from pipeline.tracking.store import ui_command

C = TypeVar("C")


def run_stage(stage: str, config_path: str, upstream: Mapping[str, str], overrides: Mapping[str, str]) -> StageOutcome:
    """Load and check the configuration, open the run, and do the stage. Raises BadInput.

    The same command again goes on with a run of it that was interrupted.
    """
    deliver_leftovers()
    try:
        config = load(STAGE_CONFIGS[stage], config_path, overrides)
        command = command_digest(stage, config, upstream)
    except BadInput:
        with open_run(stage):  # it says what was wrong
            raise
    with open_run(stage, command=command) as run:
        if run.continued:
            say(f"{stage}: goes on with run {run.run_id}, which was interrupted")
        across: Mapping[str, Callable[..., StageOutcome]] = {"main": run_main, "reproduce": reproduce}
        outcome = across.get(stage, partial(_do, stage))(run, config, upstream)
    if outcome.failed:
        end_failed(run)
    return outcome


RESUMED: Final = ("train_expert", "finetune", "baseline", "main")  # the others are done again under a new run


def command_digest(stage: str, config: Any, upstream: Mapping[str, str]) -> str | None:
    """Of what a stage that can go on is asked to do, and of the code; None for any other stage. Raises BadInput."""
    if stage not in RESUMED:
        return None
    stages = vars(plan(config)) if stage == "main" else {stage: config}
    work = {name: {"config": to_data(c), "task": to_data(load_task(c.task))} for name, c in stages.items() if c}
    return digest_of([stage, to_data(config), work, dict(upstream), dict(package_code())])


def _do(stage: str, run: StageRun, config: Any, upstream: Mapping[str, str]) -> StageOutcome:
    module = import_module(f"pipeline.stages.{stage}")
    unknown = sorted(set(upstream) - set(module.UPSTREAM))
    if unknown:
        allowed = ", ".join(module.UPSTREAM) or "none"
        raise BadInput(f"stage {stage!r} takes no reference {unknown[0]!r}; it takes: {allowed}")
    outcome: StageOutcome = module.run(run, config, upstream)
    if outcome.verdict is not None:
        run.tag({Tag.VERDICT: "yes" if outcome.verdict else "no"})
    run.tag({f"{OUTPUT_PREFIX}{role}": reference for role, reference in outcome.outputs.items()})
    run.text("".join(f"{printable(line)}\n" for line in outcome.summary), Artifact.SUMMARY)
    return outcome


# --- main: every stage for one task ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The configurations of all stages, loaded and checked before the first one starts."""

    train_expert: TrainExpert | None  # None, and `promote` with it: the demonstrations are not an expert's
    promote: Promote | None
    collect: Collect
    pretrain: Pretrain
    finetune: Finetune
    compare: Compare


def plan(config: Main) -> Plan:
    """Stage configs with main's settings on top. Raises BadInput for any fault in any of them."""
    paths = config.stages
    collect = load(Collect, paths.collect)
    _refuse_expert_stages(config, collect)
    expert = None if paths.train_expert is None else load(TrainExpert, paths.train_expert)
    if expert is not None:
        expert = _with(
            expert, {"seeds": _from(config.seed, expert.seeds), "training": {"n_envs": config.parallel_environments}}
        )
    pretrain = load(Pretrain, paths.pretrain)
    finetune = load(Finetune, paths.finetune)
    finetune = replace(finetune, reuse=finetune.reuse and config.reuse)
    seed, n_envs, camera = config.seed, config.parallel_environments, config.use_camera or None
    training = {
        "total_timesteps": config.ppo_timesteps or None,
        "n_envs": n_envs,
        "use_camera": camera,
        "visualize_every": config.visualize_every,
    }
    if config.learning_rate is not None:  # a constant one, whatever schedule the stage's config has
        constant = LearningRate(initial=config.learning_rate)
        finetune = replace(finetune, training=replace(finetune.training, learning_rate=constant))

    def matched(seeds: tuple[int, ...]) -> list[int] | None:
        return _from(seed, seeds, config.matched_seeds)

    cloning = {"seeds": matched(pretrain.seeds), "cloning": {"epochs": config.cloning_epochs}, "use_camera": camera}
    chosen = Plan(
        train_expert=expert,
        promote=None if paths.promote is None else load(Promote, paths.promote),
        collect=_with(collect, {"seeds": _from(seed, collect.seeds), "episodes": config.demonstration_episodes}),
        pretrain=_with(pretrain, cloning),
        finetune=_with(finetune, {"seeds": matched(finetune.seeds), "training": training}),
        compare=load(Compare, paths.compare),
    )
    tasks = {stage: load_task(c.task).name for stage, c in vars(chosen).items() if c is not None}
    if len(set(tasks.values())) != 1:
        raise BadInput(f"main: the stage configs are of different tasks: {tasks}; use configs of one task")
    _refuse_shared_evaluations(chosen)
    return chosen


def _refuse_expert_stages(config: Main, collect: Collect) -> None:
    """An expert is trained and approved exactly when `collect` records from it."""
    for stage in ("train_expert", "promote"):
        given = getattr(config.stages, stage)
        if given is None and collect.source == "expert":
            raise BadInput(
                f"main: stages.{stage} is missing: {config.stages.collect} records from an expert; give its config, or "
                "name another source there (scripted, minari)"
            )
        if given is not None and collect.source != "expert":
            raise BadInput(
                f"main: stages.{stage} = {given!r}: {config.stages.collect} takes its demonstrations from "
                f"{collect.source}, so no expert is needed; leave it out"
            )


def _refuse_shared_evaluations(chosen: Plan) -> None:
    """Episodes that chose the expert or the clone must not measure what came of them: that would favour one arm."""
    expert = chosen.train_expert
    seeds = {} if expert is None else {"train_expert: training.evaluation.seed": expert.training.evaluation.seed}
    seeds |= {
        "pretrain: evaluation.seed": chosen.pretrain.evaluation.seed,
        "finetune: training.evaluation.seed": chosen.finetune.training.evaluation.seed,
    }
    if len(set(seeds.values())) != len(seeds):
        shown = ", ".join(f"{name} = {value}" for name, value in seeds.items())
        raise BadInput(f"main: {shown}: they must differ, so that no stage is measured on episodes that chose it")


def run_main(run: StageRun, config: Main, upstream: Mapping[str, str]) -> StageOutcome:
    """Expert, gate, demonstrations, clone, both arms and their comparison, as runs nested in this one."""
    unknown = sorted(set(upstream) - {"expert", "policy"})
    if unknown:
        raise BadInput(f"stage 'main' takes no reference {unknown[0]!r}; it takes: expert, policy")
    stages = plan(config)
    if "expert" in upstream and stages.train_expert is None:
        source = f"{config.stages.collect} takes its demonstrations from {stages.collect.source}"
        raise BadInput(f"expert {upstream['expert']!r} has no use: {source}; leave it out")
    with _parent(run, config.experiment_name) as parent:
        parent.record_config(config, load_task(stages.collect.task), {})
        outcome = _Main(parent, stages, config, upstream).run()
    if outcome.failed and parent.run_id != run.run_id:
        end_failed(parent)
    return StageOutcome(
        (*outcome.summary, f"look at it: {ui_command()}"), outcome.verdict, outcome.failed, outcome.outputs
    )


@contextlib.contextmanager
def _parent(run: StageRun, experiment: str | None) -> Iterator[StageRun]:
    """The run that the stages nest in: this one, or a new one in the experiment that the config names."""
    if experiment is None:
        yield run
        return
    command = digest_of([run.run_id, experiment])
    with open_run("main", experiment, nested=True, command=command) as parent:
        run.describe(f"continues as run {parent.run_id} in experiment {experiment!r}")
        yield parent


class _Main:
    """The stages in their order; what one leaves behind is the next one's reference."""

    def __init__(self, parent: StageRun, stages: Plan, config: Main, upstream: Mapping[str, str]) -> None:
        self._parent, self._stages, self._config, self._upstream = parent, stages, config, upstream
        self._group = config.group or parent.run_id

    def run(self) -> StageOutcome:
        policy = self._upstream.get("policy")
        if policy is None and not self._config.skip_pretrain:
            cloned = self._clone()
            if cloned.verdict is False:
                return StageOutcome(("main: stopped there; nothing after it was run",), verdict=False, failed=True)
            policy = cloned.outputs["policy"]
        if self._config.ppo_timesteps == 0:
            outputs = {} if policy is None else {"policy": policy}
            return StageOutcome(("main: ppo_timesteps is 0: no fine-tuning, no comparison",), outputs=outputs)
        if policy is None:
            self._stage("baseline", self._stages.finetune, {})
            return StageOutcome(("main: skip_pretrain without a policy: PPO from scratch only, no comparison",))
        group = self._arms(policy)
        compared = self._stage("compare", self._stages.compare, {"group": group})
        return StageOutcome((), verdict=compared.verdict, outputs=compared.outputs)

    def _arms(self, policy: str) -> str:
        """Both arms, and the name of their group: both are reused as one comparison, or both get a run in this one's.

        The run of an arm that only misses its other half takes its trainings over and trains none.
        """
        config = self._stages.finetune
        arms: dict[str, dict[str, str]] = {"baseline": {}, "finetune": {"policy": policy}}
        found = {stage: self._finished(stage, config, upstream) for stage, upstream in arms.items()}
        group = common_group(self._parent.client, [f.run for f in found.values()])
        together = group is not None and self._config.group in (None, group)
        for stage, upstream in arms.items():
            run = found[stage].run
            if run is not None and not together:
                words = f"run for group {self._group!r}, whose other arm is not that of run {run.info.run_id}"
                found[stage] = Found(None, words)
            self._stage(stage, config, upstream, found[stage])
        return group if group is not None and together else self._group

    def _clone(self) -> StageOutcome:
        """From the expert, if there is one, to the clone; the outcome of the last stage that ran."""
        expert = self._upstream.get("expert")
        if expert is None and self._stages.train_expert is not None:
            trained = self._stage("train_expert", self._stages.train_expert, {})
            if "expert" not in trained.outputs:
                raise BadInput(
                    "main: the candidate waits for the store: python -m pipeline sync, then the same command again"
                )
            expert = trained.outputs["expert"]
            gate = self._stage("promote", self._stages.promote, {"expert": expert})
            if gate.verdict is False:
                return gate
            expert = self._approved(expert, gate.outputs["expert"])
        dataset = self._stage("collect", self._stages.collect, {"expert": expert} if expert else {})
        if dataset.verdict is False:
            return dataset
        return self._stage("pretrain", self._stages.pretrain, {"dataset": dataset.outputs["dataset"]})

    def _approved(self, trained: str, approved: str) -> str:
        """Whom the gate approved: the expert trained here, or an earlier version of the same bytes."""
        if trained != approved:
            version = find_version(self._parent.client, trained, load_task(self._stages.collect.task).name, "")
            mine, same = f"{version.name}/{version.version}", approved.removeprefix("models:/")
            say(f"main: {mine} has the bytes of {same}, which is approved: that one goes on")
            registry.give_way(self._parent.client, version, same.rpartition("/")[2])
        return approved

    def _stage(self, stage: str, config: Any, upstream: Mapping[str, str], found: Found | None = None) -> StageOutcome:
        """Take a finished stage over, or run it nested in main's run; show what it came to as soon as it stands."""
        started = time.monotonic()
        say(f"--- {stage}")
        found = self._finished(stage, config, upstream) if found is None else found
        say(f"{stage}: {found.words}")
        if found.run is not None:
            self._parent.tag({f"{REUSED_PREFIX}{stage}": found.run.info.run_id})
            outcome = self._taken_over(found.run.info.run_id, found.run.data.tags)
        else:
            outcome = self._run(stage, config, upstream)
        for line in outcome.summary:
            say(line)
        say(f"    ({time.monotonic() - started:.0f} s)")
        return outcome

    def _taken_over(self, run_id: str, tags: Mapping[str, str]) -> StageOutcome:
        """What a finished stage came to, from its record."""
        summary = read_text_artifact(self._parent.client, run_id, Artifact.SUMMARY) or ""
        outputs = {key.removeprefix(OUTPUT_PREFIX): v for key, v in tags.items() if key.startswith(OUTPUT_PREFIX)}
        verdict = {"yes": True, "no": False}.get(tags.get(Tag.VERDICT, ""))
        return StageOutcome(tuple(summary.splitlines()), verdict=verdict, outputs=outputs)

    def _run(self, stage: str, config: Any, upstream: Mapping[str, str]) -> StageOutcome:
        if "group" in import_module(f"pipeline.stages.{stage}").UPSTREAM:
            upstream = {"group": self._group, **upstream}
        command = command_digest(stage, config, {**upstream, "main": self._parent.run_id})
        with open_run(stage, nested=True, command=command) as run:
            run.tag({Tag.GROUP: self._group})
            outcome = _do(stage, run, config, upstream)
        if outcome.failed:
            end_failed(run)
        return outcome

    def _finished(self, stage: str, config: Any, upstream: Mapping[str, str]) -> Found:
        """An earlier run of the stage with an equal content key, unless `reuse` says no."""
        if not self._config.reuse:
            return Found(None, "run: reuse is false")
        task = load_task(config.task)
        inputs = import_module(f"pipeline.stages.{stage}").inputs(self._parent, config, upstream)
        return find_finished(self._parent.client, stage, task.name, content_key(to_data(config), task, inputs))


def _with(config: C, changes: Mapping[str, Any]) -> C:
    """A copy with nested settings changed; a change that is None keeps what the config says."""
    return validate(type(config), _merge(to_data(config), changes), "main")


def _merge(data: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(data)
    for key, value in changes.items():
        if value is None:
            continue
        nested = isinstance(value, Mapping) and isinstance(data.get(key), dict)
        merged[key] = _merge(data[key], value) if nested else value
    return merged


def _from(first: int | None, seeds: tuple[int, ...], count: int | None = None) -> list[int] | None:
    """`5, (1, 2, 3)` -> `[5, 6, 7]`; None twice keeps the seeds of the config."""
    if first is None and count is None:
        return None
    start = seeds[0] if first is None else first
    return [start + i for i in range(count or len(seeds))]
