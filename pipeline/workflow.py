"""What happens around a stage (open its run, load its config) and across stages (`main`)."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Final, TypeVar

from pipeline.config.loading import load, load_task, to_data, validate
from pipeline.config.stages import STAGE_CONFIGS, Collect, Compare, Finetune, Main, Pretrain, Promote, TrainExpert
from pipeline.config.training import LearningRate
from pipeline.errors import BadInput
from pipeline.names import OUTPUT_PREFIX, Tag
from pipeline.stages import StageOutcome
from pipeline.tracking.forwarder import deliver_leftovers
from pipeline.tracking.operations import tag_text
from pipeline.tracking.runs import StageRun, code_tags, digest_of, end_failed, open_run, search
from pipeline.tracking.store import ui_command

C = TypeVar("C")


def run_stage(stage: str, config_path: str, upstream: Mapping[str, str], overrides: Mapping[str, str]) -> StageOutcome:
    """Open the run, load and check the configuration, and do the stage. Raises BadInput."""
    deliver_leftovers()
    with open_run(stage) as run:
        config = load(STAGE_CONFIGS[stage], config_path, overrides)
        outcome = run_main(run, config, upstream) if stage == "main" else _do(stage, run, config, upstream)
    if outcome.failed:
        end_failed(run)
    return outcome


RESUMED: Final = ("train_expert", "finetune", "baseline", "main")  # the others are done again under a new run


def command_digest(stage: str, config: Any, upstream: Mapping[str, str]) -> str | None:
    """Of what a stage that can go on is asked to do, and of the code; None for any other stage. Raises BadInput."""
    if stage not in RESUMED:
        return None
    stages = vars(plan(config)) if stage == "main" else {stage: config}
    work = {name: {"config": to_data(c), "task": to_data(load_task(c.task))} for name, c in stages.items()}
    return digest_of([stage, to_data(config), work, dict(upstream), code_tags()])


def _do(stage: str, run: StageRun, config: Any, upstream: Mapping[str, str]) -> StageOutcome:
    module = import_module(f"pipeline.stages.{stage}")
    unknown = sorted(set(upstream) - set(module.UPSTREAM))
    if unknown:
        allowed = ", ".join(module.UPSTREAM) or "none"
        raise BadInput(f"stage {stage!r} takes no reference {unknown[0]!r}; it takes: {allowed}")
    outcome: StageOutcome = module.run(run, config, upstream)
    if outcome.verdict is not None:
        run.tag({Tag.VERDICT: "yes" if outcome.verdict else "no"})
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
        group = {"group": self._group}
        self._stage("baseline", self._stages.finetune, group)
        if policy is None:
            return StageOutcome(("main: skip_pretrain without a policy: PPO from scratch only, no comparison",))
        self._stage("finetune", self._stages.finetune, {**group, "policy": policy})
        compared = self._stage("compare", self._stages.compare, group)
        return StageOutcome((), verdict=compared.verdict, outputs=compared.outputs)

    def _clone(self) -> StageOutcome:
        """From the expert, if there is one, to the clone; the outcome of the last stage that ran."""
        expert = self._upstream.get("expert")
        if expert is None and self._stages.train_expert is not None:
            trained = self._stage("train_expert", self._stages.train_expert, {})
            if "expert" not in trained.outputs:
                raise BadInput(
                    "main: the candidate waits for the store: python -m pipeline sync, then the same command again "
                    f"with group={self._group}"
                )
            expert = trained.outputs["expert"]
            gate = self._stage("promote", self._stages.promote, {"expert": expert})
            if gate.verdict is False:
                return gate
        dataset = self._stage("collect", self._stages.collect, {"expert": expert} if expert else {})
        if dataset.verdict is False:
            return dataset
        return self._stage("pretrain", self._stages.pretrain, {"dataset": dataset.outputs["dataset"]})

    def _stage(self, stage: str, config: Any, upstream: Mapping[str, str]) -> StageOutcome:
        """Run a stage nested in main's run and show what it came to as soon as it stands."""
        started = time.monotonic()
        print(f"--- {stage}", flush=True)
        task = to_data(load_task(config.task))
        plan_digest = digest_of({"config": to_data(config), "task": task, "upstream": dict(upstream)})
        before = self._finished(stage, plan_digest)
        if before is not None:
            return before
        command = command_digest(stage, config, {**upstream, "main": self._parent.run_id})
        with open_run(stage, nested=True, command=command) as run:
            run.tag({Tag.GROUP: self._group, Tag.PLAN_DIGEST: plan_digest})
            outcome = _do(stage, run, config, upstream)
            run.tag({f"{OUTPUT_PREFIX}{role}": reference for role, reference in outcome.outputs.items()})
        if outcome.failed:
            end_failed(run)
        for line in outcome.summary:
            print(line)
        print(f"    ({time.monotonic() - started:.0f} s)", flush=True)
        return outcome

    def _finished(self, stage: str, plan_digest: str) -> StageOutcome | None:
        """What an earlier `main` of this group came to in the stage, with equal inputs and the same code."""
        wanted = {Tag.GROUP: self._group, Tag.STAGE: stage, Tag.PLAN_DIGEST: plan_digest, **code_tags()}
        found = search(self._parent.client, {key: tag_text(value) for key, value in wanted.items()}, limit=1)
        if not found or Tag.TAINT in found[0].data.tags:
            return None
        run_id, tags = found[0].info.run_id, found[0].data.tags
        print(f"{stage}: was finished before in group {self._group!r} (run {run_id}); taken over", flush=True)
        outputs = {key.removeprefix(OUTPUT_PREFIX): v for key, v in tags.items() if key.startswith(OUTPUT_PREFIX)}
        verdict = {"yes": True, "no": False}.get(tags.get(Tag.VERDICT, ""))
        return StageOutcome((), verdict=verdict, outputs=outputs)


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
