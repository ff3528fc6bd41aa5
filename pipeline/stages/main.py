"""`main`: every stage for one task, as runs nested in one; what is finished and sound is taken over."""

import contextlib
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np

from pipeline.config.loading import load, load_task, override, to_data
from pipeline.config.stages import (
    SOURCES,
    STAGE_CONFIGS,
    Collect,
    Compare,
    Finetune,
    Main,
    Pretrain,
    Promote,
    TrainExpert,
)
from pipeline.errors import BadInput, say
from pipeline.gate import check_rules
from pipeline.learning.arms import check_arms
from pipeline.names import OUTPUT_PREFIX, REUSED_PREFIX, Artifact, Tag
from pipeline.report.clips import check_drawable
from pipeline.stages import StageOutcome, command_digest, conclude, do, report_link, stage_module
from pipeline.statistics.matched import MINIMUM_PAIRS
from pipeline.tasks import Task
from pipeline.tracking import registry
from pipeline.tracking.content_key import content_key, digest_of
from pipeline.tracking.datasets import fetch_for_training, part_of
from pipeline.tracking.groups import common_group
from pipeline.tracking.lineage import version_link
from pipeline.tracking.models import find_version
from pipeline.tracking.reuse import Found, find_finished
from pipeline.tracking.runs import read_text_artifact
from pipeline.tracking.stage_run import StageRun, open_run
from pipeline.tracking.store import how_to_look
from pipeline.tracking.views import FINAL, view_address

UPSTREAM = ("expert", "policy")
# setting of main -> what it sets in the stages' configs, where it is not left at its default
KNOBS: Final[Mapping[str, tuple[str, ...]]] = {
    "demonstration_episodes": ("collect.episodes",),
    "cloning_epochs": ("pretrain.cloning.epochs",),
    "ppo_timesteps": ("finetune.training.total_timesteps",),
    "parallel_environments": ("train_expert.training.n_envs", "finetune.training.n_envs"),
    "learning_rate": ("finetune.training.learning_rate",),
    "seed": ("train_expert.seeds", "collect.seeds", "pretrain.seeds", "finetune.seeds"),
    "matched_seeds": ("pretrain.seeds", "finetune.seeds"),
    "use_camera": ("pretrain.use_camera", "finetune.training.use_camera"),
    "visualize_every": ("finetune.training.visualize_every",),
    "reuse": ("finetune.reuse",),
}
# metrics of its stages that main's run shows as well
HEADLINE: Final = re.compile(
    r"gate/candidate/.*|sample_efficiency/ratio.*|final/.*/success_rate_(scratch|pretrained)(_ci_low|_ci_high)?"
    r"|bill/(upfront_steps|saving_per_run|total_ratio|break_even_reuses)"
)
DEFAULTS: Final = {setting.name: setting.default for setting in fields(Main)}


@dataclass(frozen=True)
class Plan:
    """The configurations of all stages, loaded and checked before the first one starts."""

    train_expert: TrainExpert | None  # None: the expert is given, or the demonstrations are not an expert's
    promote: Promote | None  # None: they are not
    collect: Collect
    pretrain: Pretrain
    finetune: Finetune  # of both arms
    compare: Compare


def plan(config: Main) -> Plan:
    """Stage configs with main's settings on top, and its overrides on top of those.

    Raises BadInput for any fault in any of them.
    """
    given = {stage: source for stage, source in vars(config.stages).items() if source is not None}
    for key in config.overrides:
        if key in vars(config.stages):
            raise BadInput(f"main: override {key!r} names no setting; a stage's config is given as -P stages.{key}=…")
        if key.partition(".")[0] not in given:
            raise BadInput(
                f"main: override {key!r} is of no stage config that it uses; there are: {', '.join(given)} (finetune's "
                "is the baseline's too)"
            )
    configs: dict[str, Any] = dict.fromkeys(("train_expert", "promote"))
    for stage, source in given.items():
        own = f"{stage}."
        overrides = {key.removeprefix(own): text for key, text in config.overrides.items() if key.startswith(own)}
        seeds = getattr(_stage_config(stage, source, overrides), "seeds", ())
        configs[stage] = _stage_config(stage, source, {**_from_knobs(config, stage, seeds), **overrides})
    chosen = Plan(**configs)
    # an expert is approved exactly when `collect` records from it
    source = chosen.collect.source
    if source == "expert" and chosen.promote is None:
        raise BadInput(
            "main: stages.promote is missing: collect records from an expert; give its config, or name another source "
            f"in collect's ({', '.join(SOURCES)})"
        )
    for stage in ("train_expert", "promote"):
        if stage in given and source != "expert":
            raise BadInput(
                f"main: stages.{stage} is given: collect takes its demonstrations from {source}, so no expert is "
                f"needed; leave it out (-P stages.{stage}=null)"
            )
    tasks = {stage: load_task(c.task).name for stage, c in configs.items() if c is not None}
    if len(set(tasks.values())) != 1:
        raise BadInput(f"main: the stage configs are of different tasks: {tasks}; use configs of one task")
    # episodes that chose the expert or the clone must not measure what came of them: that would favour one arm
    expert = chosen.train_expert
    evaluated = {} if expert is None else {"train_expert: training.evaluation.seed": expert.training.evaluation.seed}
    evaluated |= {
        "pretrain: evaluation.seed": chosen.pretrain.evaluation.seed,
        "finetune: training.evaluation.seed": chosen.finetune.training.evaluation.seed,
    }
    if len(set(evaluated.values())) != len(evaluated):
        shown = ", ".join(f"{name} = {value}" for name, value in evaluated.items())
        raise BadInput(f"main: {shown}: they must differ, so that no stage is measured on episodes that chose it")
    if config.datasets > 1:
        _check_datasets(config.datasets, chosen)
    return chosen


def _stage_config(stage: str, source: str | Mapping[str, Any], overrides: Mapping[str, str]) -> Any:
    """A stage's config from its path or its settings, with overrides on top. Raises BadInput."""
    if isinstance(source, str):
        return load(STAGE_CONFIGS[stage], source, overrides)
    return override(STAGE_CONFIGS[stage], source, overrides, f"main: stages.{stage}")


def _check_datasets(count: int, stages: Plan) -> None:
    """Raise BadInput for several datasets that say nothing, or that cannot be recorded."""
    seeds, source = stages.finetune.seeds, stages.collect.source
    own = [name for name, arm in stages.finetune.arms.items() if arm.own_clones or arm.demonstrations]
    wrong = None
    if count < MINIMUM_PAIRS:
        wrong = f"too few for an interval over them; 1, or at least {MINIMUM_PAIRS}"
    elif len(seeds) % count or set(seeds) - set(stages.pretrain.seeds):
        wrong = (
            f"{len(seeds)} matched seeds {list(seeds)} cannot be shared out evenly; clone and train a multiple of it"
        )
    elif source not in ("expert", "scripted"):
        wrong = f"collect takes its demonstrations from {source}, which is always the same; 1"
    elif own:
        wrong = (
            f"arm {own[0]!r} of finetune has demonstrations of its own, or in its batches; 1, or do without that arm"
        )
    if wrong is not None:
        raise BadInput(f"main: datasets = {count}: {wrong}")


def _from_knobs(config: Main, stage: str, seeds: tuple[int, ...]) -> dict[str, str]:
    """What main's own settings override in the config of a stage with these seeds: `{"training.n_envs": "4"}`."""
    own = f"{stage}."
    count = config.matched_seeds if f"{own}seeds" in KNOBS["matched_seeds"] else None
    first = seeds[0] if seeds and config.seed is None else config.seed or 0
    consecutive = list(range(first, first + (count or len(seeds))))
    constant = {"initial": config.learning_rate}  # whatever schedule the stage's config has
    made = {"seed": consecutive, "matched_seeds": consecutive, "learning_rate": constant}
    overrides: dict[str, str] = {}
    for knob, paths in KNOBS.items():
        value = getattr(config, knob)
        if value == DEFAULTS[knob] or (knob == "ppo_timesteps" and value == 0):  # 0: what it is for is skipped
            continue
        for path in paths:
            if path.startswith(own):
                overrides[path.removeprefix(own)] = json.dumps(made.get(knob, value))
    return overrides


def run(run: StageRun, config: Main, upstream: Mapping[str, str]) -> StageOutcome:
    stages = plan(config)
    clones = "policy" not in upstream and not config.skip_pretrain
    if "expert" in upstream and (stages.promote is None or not clones):
        why = f"collect takes its demonstrations from {stages.collect.source}"
        if not clones:
            why = "skip_pretrain makes no clones" if config.skip_pretrain else "the policy is given, no clones are made"
        raise BadInput(f"expert {upstream['expert']!r} has no use: {why}; leave it out")
    if clones and "expert" not in upstream and stages.promote is not None and stages.train_expert is None:
        raise BadInput(
            "main: no expert: give one that is trained (-P expert=their.zip, or a version of the registry), or the "
            "config of its training as stages.train_expert"
        )
    of_clones = ("demonstration_episodes", "cloning_epochs", "datasets")
    if not clones and (idle := [knob for knob in of_clones if getattr(config, knob) != DEFAULTS[knob]]):
        say(f"main: no clones are made, so {', '.join(idle)} say nothing", sys.stderr)
    # what a later stage would refuse is refused before hours of others are behind it
    if clones:
        if stages.promote is not None:
            judged = Task(load_task(stages.promote.task))
            check_rules(stages.promote.rules, judged.config)
            for rule in stages.promote.rules:
                judged.shares(rule.scenario_set)
        Task(load_task(stages.collect.task)).refuse_holdouts(stages.collect.scenario_set, "recording")
        Task(load_task(stages.pretrain.task)).refuse_holdouts(stages.pretrain.scenario_set, "evaluating a training")
        parts = {"pretrain": stages.pretrain.episodes}
        arms = stages.finetune.arms if config.ppo_timesteps != 0 else {}
        parts |= {f"finetune.arms.{name}": arm.episodes for name, arm in arms.items() if not arm.dataset}
        for name, count in parts.items() if stages.collect.source in ("expert", "scripted") else ():
            if count is not None and count > stages.collect.episodes:
                raise BadInput(
                    f"main: {name}.episodes = {count}, but collect.episodes = {stages.collect.episodes} are recorded; "
                    "ask for as many at most"
                )
    if config.ppo_timesteps != 0:
        if not clones and "policy" not in upstream and stages.finetune.arms:
            raise BadInput(
                f"main: arm {next(iter(stages.finetune.arms))!r} of finetune: skip_pretrain without a policy trains "
                "from scratch alone; give the policy that arms start from, or leave them out (-P finetune.arms={})"
            )
        training = stages.finetune.training
        task = Task(load_task(stages.finetune.task), training.environment, training.use_camera)
        check_arms(stages.finetune, task)
        check_drawable(task, "finetune.training.visualize_every", training.visualize_every)
        if clones or "policy" in upstream:
            stages.compare.solved(load_task(stages.compare.task))
    with contextlib.ExitStack() as stack:
        parent, elsewhere = run, config.experiment_name
        if elsewhere is not None:  # the stages nest in a run of the experiment that the config names
            command = digest_of([run.run_id, elsewhere])
            parent = stack.enter_context(open_run("main", elsewhere, nested=True, command=command))
            run.describe(f"continues as run {parent.run_id} in experiment {elsewhere!r}")
        parent.record_config(config, load_task(stages.collect.task), {})
        stages_of = _Main(parent, stages, config, upstream)
        outcome = stages_of.told(stages_of.run())
        if parent is not run:
            conclude(parent, "main", outcome)
    if outcome.failed and parent is not run:
        parent.close("FAILED")  # its stage did its work, and the verdict is a refusal
    look = how_to_look(view_address(parent.experiment_id, "comparisons"))
    return replace(outcome, summary=(*outcome.summary, f"  all of it: {look}"))


class _Main:
    """The stages in their order; what one leaves behind is the next one's reference."""

    def __init__(self, parent: StageRun, stages: Plan, config: Main, upstream: Mapping[str, str]) -> None:
        self._parent, self._stages, self._config, self._upstream = parent, stages, config, upstream
        self._group = config.group or parent.run_id
        self._done: dict[str, tuple[StageOutcome, float]] = {}  # stage -> what it came to, and its seconds

    def run(self) -> StageOutcome:
        policy = self._upstream.get("policy")
        if policy is None and not self._config.skip_pretrain:
            cloned = self._clone()
            policy = cloned.outputs.get("policy")
            if policy is None and cloned.verdict is None:  # the gate waits for a person
                return StageOutcome(("main: stopped there; after the signature the same command goes on",))
            if cloned.verdict is False and (policy is None or not self._config.finetune_failed_clones):
                line = "main: stopped there; nothing after it was run"
                if policy is not None:
                    line += (
                        ": the imitation failed, see above for why; finetune_failed_clones=true goes on all the same"
                    )
                return StageOutcome((line,), verdict=False, failed=True)
        if self._config.ppo_timesteps == 0:
            outputs = {} if policy is None else {"policy": policy}
            return StageOutcome(("main: ppo_timesteps is 0: no fine-tuning, no comparison",), outputs=outputs)
        if policy is None:
            self._stage("baseline", self._stages.finetune, {})
            return StageOutcome(("main: skip_pretrain without a policy: PPO from scratch only, no comparison",))
        compared = self._stage("compare", self._stages.compare, {"group": self._arms(policy)})
        return StageOutcome((), verdict=compared.verdict, outputs=compared.outputs)

    def told(self, outcome: StageOutcome) -> StageOutcome:
        """The outcome with what a person wants first; the run gets the figures that matter, and the dataset, of all."""
        parent, runs = self._parent, {stage: str(done.run_id) for stage, (done, _) in self._done.items()}
        expert = None
        # in their order: the store keeps a dataset's first context, and main's is that of the recording
        for stage in [stage for stage in runs if stage.split()[0] in ("promote", "collect", "compare")]:
            found = parent.client.get_run(runs[stage])
            parent.metrics({name: value for name, value in found.data.metrics.items() if HEADLINE.fullmatch(name)})
            if found.inputs is not None:
                parent.client.log_inputs(parent.run_id, found.inputs.dataset_inputs)
            expert = found.data.tags.get(Tag.LINEAGE_EXPERT)
            if stage == "compare":
                final = f"final/{self._stages.finetune.training.scenario_set}/success_rate"
                means = {arm: found.data.metrics.get(f"{final}_{arm}") for arm in FINAL}
                parent.metrics({FINAL[arm]: mean for arm, mean in means.items() if mean is not None})
                parent.tag({Tag.COMPARISON: found.data.tags.get(Tag.COMPARISON)})
        seconds = ", ".join(f"{stage} {seconds:.0f} s" for stage, (_, seconds) in self._done.items())
        see = f"Stages: {', '.join(parent.link(run_id, stage) for stage, run_id in runs.items())}."
        if expert is not None:
            see += f" In the registry: {version_link(expert)}."
        lines = [f"main: {seconds}"]
        if "compare" in runs:
            figure, *reasons = self._done["compare"][0].summary
            lines = [f"main: {figure.removeprefix('compare: ')}", *reasons, f"  {seconds}"]
            lines.append(f"  where it comes from: python -m pipeline lineage {runs['compare']}")
            by_step = {"curves": "the success of the arms"}
            if self._stages.finetune.training.visualize_every:
                by_step["films"] = "films of them"
            links = [f"[{words}]({view_address(parent.experiment_id, view)})" for view, words in by_step.items()]
            see = f"{report_link(parent, runs['compare'])} By step: {', '.join(links)}. {see}"
        return replace(outcome, summary=(*outcome.summary, *lines), see=see)

    def _clone(self) -> StageOutcome:
        """From the expert, if there is one, to the clone; the outcome of the last stage that ran."""
        expert = self._upstream.get("expert")
        trained = None
        if expert is None and self._stages.train_expert is not None:
            trained = self._stage("train_expert", self._stages.train_expert, {}).outputs.get("expert")
            if trained is None:
                raise BadInput(
                    "main: the candidate waits for the store: python -m pipeline sync, then the same command again"
                )
        # also one that somebody else trained goes through the gate; a version of the registry has been there
        candidate = trained or (expert if expert is not None and expert.lower().endswith(".zip") else None)
        if candidate is not None:
            gate = self._stage("promote", self._stages.promote, {"expert": candidate})
            if not gate.verdict:
                return gate
            expert = gate.outputs["expert"]
            if trained is not None and expert != trained:  # an earlier version of the same bytes
                version = find_version(self._parent.client, trained, load_task(self._stages.collect.task).name, "")
                mine, same = f"{version.name}/{version.version}", expert.removeprefix("models:/")
                say(f"main: {mine} has the bytes of {same}, which is approved: that one goes on")
                registry.give_way(self._parent.client, version, same.rpartition("/")[2])
        datasets = []
        for index in range(self._config.datasets):
            collect, name = self._stages.collect, "collect"
            if index:  # the first is the one of a study with one dataset
                seeds = (int(np.random.SeedSequence([s, index]).generate_state(1)[0]) >> 1 for s in collect.seeds)
                collect, name = replace(collect, seeds=tuple(seeds)), f"collect dataset {index + 1}"
            recorded = self._stage("collect", collect, {"expert": expert} if expert else {}, name=name)
            if recorded.verdict is False:
                return recorded
            datasets.append(recorded.outputs["dataset"])
        return self._clones(datasets)

    def _clones(self, datasets: Sequence[str]) -> StageOutcome:
        """Clones for all arms; of those for one arm alone only the outcome that ends `main` is told."""
        config, client, dataset = self._stages.pretrain, self._parent.client, datasets[0]
        asked = {"pretrain": (dataset, config)}
        if len(datasets) > 1:  # the seeds of the trainings in turn
            seeds, count = self._stages.finetune.seeds, len(datasets)
            asked = {
                f"pretrain dataset {index + 1}": (one, replace(config, seeds=seeds[index::count]))
                for index, one in enumerate(datasets)
            }
        for arm in self._stages.finetune.arms.values():
            if arm.own_clones:
                parts = ("pretrain", arm.dataset, arm.episodes and f"{arm.episodes} episodes")
                asked[" ".join(part for part in parts if part)] = arm.dataset or dataset, arm.cloning(config)
        taken = [(reference, cloning.episodes) for reference, cloning in asked.values()]
        if self._config.ppo_timesteps != 0:
            taken += [(dataset, arm.episodes) for arm in self._stages.finetune.arms.values() if arm.demonstrations]
        for reference, episodes in taken:  # a dataset that is too small is refused before anything is cloned
            part_of(fetch_for_training(client, reference, load_task(config.task).name), episodes)
        outcomes = []
        for name, (reference, cloning) in asked.items():
            outcomes.append(self._stage("pretrain", cloning, {"dataset": reference}, name=name))
            if outcomes[-1].verdict is False and not self._config.finetune_failed_clones:
                return outcomes[-1]
        policies = [outcome.outputs["policy"] for outcome in outcomes[: len(datasets)]]
        return replace(outcomes[0], outputs={"policy": ",".join(policies)})

    def _arms(self, policy: str) -> str:
        """Both arms, and the name of their group: both are reused as one comparison, or both get a run in this one's.

        The run of an arm that only misses its other half takes its trainings over and trains none.
        """
        config, upstream = self._stages.finetune, {"policy": policy}
        found = {stage: self._finished(stage, config, upstream) for stage in ("baseline", "finetune")}
        group = common_group(self._parent.client, [f.run for f in found.values()])
        together = group is not None and self._config.group in (None, group)
        for stage, earlier in found.items():
            if earlier.run is not None and not together:
                words = f"run for group {self._group!r}, whose other arm is not that of run {earlier.run.info.run_id}"
                earlier = Found(None, words)
            self._stage(stage, config, upstream, earlier)
        return group if group is not None and together else self._group

    def _finished(self, stage: str, config: Any, upstream: Mapping[str, str]) -> Found:
        """An earlier run of the stage with an equal content key, unless `reuse` says no."""
        if not self._config.reuse:
            return Found(None, "run: reuse is false")
        task = load_task(config.task)
        key = content_key(to_data(config), task, stage_module(stage).inputs(self._parent, config, upstream))
        return find_finished(self._parent.client, stage, task.name, key)

    def _stage(
        self, stage: str, config: Any, upstream: Mapping[str, str], found: Found | None = None, name: str | None = None
    ) -> StageOutcome:
        """Take a finished stage over, or run it nested in main's run; show what it came to as soon as it stands.

        `name`: what to call it, where a stage is run more than once.
        """
        started, name = time.monotonic(), name or stage
        found = self._finished(stage, config, upstream) if found is None else found
        say(f"--- {name}: {found.words}")
        if found.run is None:
            if "group" in stage_module(stage).UPSTREAM:
                upstream = {"group": self._group, **upstream}
            command = command_digest(stage, config, {**upstream, "main": self._parent.run_id})
            outcome = do(stage, config, upstream, command, self._group)
        else:  # what it came to is on its record
            run_id, tags = found.run.info.run_id, found.run.data.tags
            self._parent.tag({f"{REUSED_PREFIX}{name}": run_id})
            outcome = StageOutcome(
                tuple((read_text_artifact(self._parent.client, run_id, Artifact.SUMMARY) or "").splitlines()),
                verdict={"yes": True, "no": False}.get(tags.get(Tag.VERDICT, "")),
                outputs={k.removeprefix(OUTPUT_PREFIX): v for k, v in tags.items() if k.startswith(OUTPUT_PREFIX)},
                run_id=run_id,
            )
        for line in outcome.summary if stage != "compare" else ():  # what it comes to is what `main` ends with
            say(line)
        self._done[name] = outcome, time.monotonic() - started
        return outcome
