"""The command line of every entry point: references, a config and dotted overrides in; an exit code out.

Exit codes: 0 done; 1 done, and the verdict is no; 2 bad input (one line on standard error, no traceback); 3 a fault
that is not the user's (a full disk, a defect): one line for what the system refused, a traceback for a defect.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.errors import BadInput, Interrupted, disk_refusal, machine_fault, printable, say, shortened
from pipeline.names import STAGES, THREAD_VARIABLES, Tag

if TYPE_CHECKING:
    from pipeline.validation.check import Checked

DONE, VERDICT_NO, BAD_INPUT, FAULT = 0, 1, 2, 3
REFERENCES = ("expert", "dataset", "policy", "group", "run")


class _Parser(argparse.ArgumentParser):
    """Does not print its usage and exit: a user's mistake here is one line like every other."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"arguments: {message}")


def stage_main(stage: str, arguments: Sequence[str] | None = None) -> int:
    """Run one stage from the command line and return its exit code."""
    _take_any_text()
    try:
        config, upstream, overrides = parse(stage, sys.argv[1:] if arguments is None else arguments)
    except BadInput as error:  # who asks for help leaves by argparse's own SystemExit
        return _told(stage, error)
    try:
        # before numpy and torch read them: networks this small run fastest, and with equal bits, on one thread
        for variable in THREAD_VARIABLES:
            os.environ.setdefault(variable, "1")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # of every run, where a server has it
        gc.disable()
        from pipeline.stages import run_stage, stage_module  # late: --help and a misspelt argument answer at once

        stage_module(stage)
        if not gc.get_freeze_count():  # what libraries made stays: to look through it again and again takes seconds
            gc.freeze()
        gc.enable()
        with _terminate_cleanly():
            outcome = run_stage(stage, config, upstream, overrides)
        for line in (*outcome.summary, *outcome.table.splitlines()):
            say(line)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return _told(stage, error)
    return VERDICT_NO if outcome.verdict is False else DONE


def _told(doing: str, error: BaseException) -> int:
    """Say what went wrong; the exit code. A line for the user that a disk is behind of is no fault of the user's."""
    if isinstance(error, KeyboardInterrupt):
        say(f"{doing}: interrupted", sys.stderr)
        return 130
    if isinstance(error, Interrupted):
        say(f"{doing}: interrupted: {error}; the same command goes on", sys.stderr)
        return 130
    if isinstance(error, BadInput):
        say(f"error: {error}", sys.stderr)
        return BAD_INPUT if disk_refusal(error) is None else FAULT
    line = machine_fault(doing, error)
    if line is None:  # Python's own exit code for a defect is 1, which here means "the verdict is no"
        traceback.print_exception(error)
    else:
        say(f"error: {line}", sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # nobody takes what is left in it: Python would try once more at its end, and end with code 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAULT


def _take_any_text() -> None:
    """A terminal that cannot show a character is shown its code, and nothing fails for it, in whatever library."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def parse(stage: str, arguments: Sequence[str]) -> tuple[str, dict[str, str], dict[str, str]]:
    """`["--config", "c.yaml", "--dataset", "latest", "--cloning.epochs", "3"]` -> config, references, overrides.

    An empty reference is one that was not given. Raises BadInput for an argument that is not `--key value`.
    """
    if stage not in STAGES:
        raise BadInput(f"stage {shortened(stage)} is unknown; there are: {', '.join(STAGES)}")
    parser = _Parser(
        prog=f"python -m entrypoints.{stage}",
        description=f"Stage {stage}. Every other --key value overrides the config by dotted key.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="YAML file of the stage's settings")
    # main's group is a setting of its config; the stages take it as a reference
    references = [name for name in REFERENCES if (stage, name) != ("main", "group")]
    for reference in references:
        parser.add_argument(f"--{reference}", default="", help=argparse.SUPPRESS)
    known, rest = parser.parse_known_args(list(arguments))
    overrides: dict[str, str] = {}
    while rest:
        key = rest.pop(0)
        if not key.startswith("--") or len(key) < 3:
            raise BadInput(f"argument {shortened(key)} is not understood; write --section.setting value")
        name, equals, value = key[2:].partition("=")
        if not equals:
            if not rest:
                raise BadInput(f"argument --{name} has no value; write --{name} value")
            value = rest.pop(0)
        overrides[name] = value
    upstream = {name: value for name in references if (value := getattr(known, name))}
    return known.config, upstream, overrides


TABLES = ("datasets", "policies", "runs")
CHAINS = ("lineage", "why", "impact")
EXPORTS = {
    "export_dataset": ("dataset", "folder"),
    "export_policy": ("policy", "file"),
    "fit_snqi_baseline": ("dataset", "file"),
}


def ask(arguments: Sequence[str] | None = None) -> int:
    """Answer one question from the store (a table, a chain, a file for others), or make it, or deliver what waits."""
    parser = _Parser(prog="python -m pipeline", description="Questions to the store.", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for table in TABLES:
        verb = verbs.add_parser(table, help=f"list {table}")
        verb.add_argument("--task", help="of one task only")
        verb.add_argument("--json", action="store_true", help="for scripts")
    for chain in CHAINS:
        verb = verbs.add_parser(chain, help="the chain around a run id, <model>/<version> or dataset id")
        verb.add_argument("reference")
        verb.add_argument("--json", action="store_true", help="for scripts")
    for export, (what, target) in EXPORTS.items():
        verb = verbs.add_parser(export, help=f"write from a {what} to a new {target}")
        verb.add_argument("reference", metavar=what)
        verb.add_argument("target", metavar=target)
        if export == "export_dataset":
            verb.add_argument("--format", help="minari, lerobot or npz; without it the target's ending decides")
    verb = verbs.add_parser(
        "inspect", help="what an SB3 zip of somebody else holds, executing nothing; code 1: refused"
    )
    verb.add_argument("file")
    verb.add_argument("--json", action="store_true", help="for scripts")
    verb = verbs.add_parser(
        "check", help="hold demonstrations of anybody to every rule that applies; code 1: one fails"
    )
    verb.add_argument("path", help="a file or folder in any format that collect reads, or a dataset of ours")
    verb.add_argument("--task", help="task file whose spaces, figures and environment they are held to")
    verb.add_argument("--scenario", help="of that task; its first one unless given")
    verb.add_argument("--json", action="store_true", help="for scripts")
    verbs.add_parser(
        "store", help="make the store that MLFLOW_TRACKING_URI names, before several commands use it at once"
    )
    verbs.add_parser("sync", help="deliver to the store what trainings left waiting on this machine")
    _take_any_text()
    try:
        lines, good = _answer(parser.parse_args(arguments))
        for line in lines:
            say(line)
    except (Exception, KeyboardInterrupt) as error:
        return _told("the answer", error)
    return DONE if good else VERDICT_NO


def _answer(known: argparse.Namespace) -> tuple[Iterable[str], bool]:
    """What is said, and whether it is good; each verb imports what it needs late, so that --help answers at once."""
    if known.verb == "sync":
        from pipeline.tracking.spool import sync

        done, lines = sync()
        return lines, done
    if known.verb == "inspect":
        from pipeline.policies.sb3_actor import inspect_sb3_zip

        held = inspect_sb3_zip(known.file)
        return [json.dumps(held, indent=2)] if known.json else _told_of_zip(held), held["refused"] is None
    if known.verb == "check":
        from pipeline.validation.check import check

        checked = check(known.path, known.task, known.scenario)
        told = [json.dumps(checked.to_json(), indent=2)] if known.json else _told_of_check(checked)
        return told, checked.report.passed
    if known.verb == "store":
        from pipeline.tracking.runs import search
        from pipeline.tracking.store import connect, experiment_id, how_to_look
        from pipeline.tracking.views import view_address

        client, address = connect(), ""
        if name := os.environ.get("MLFLOW_EXPERIMENT_NAME"):  # `mlflow run` would put its artifacts into ./mlruns
            address = view_address(experiment_id(client, name, "MLFLOW_EXPERIMENT_NAME"), "comparisons")
        elif newest := search(client, {Tag.STAGE: "main"}, limit=1):
            address = view_address(newest[0].info.experiment_id, "comparisons")
        return [f"store: ready; look at it: {how_to_look(address)}"], True
    from pipeline import query

    if known.verb in CHAINS:
        chain = getattr(query, known.verb)(known.reference)
        return (json.dumps(chain.to_json(), indent=2) if known.json else chain.to_text()).split("\n"), True
    if known.verb in EXPORTS:
        options = {"format": known.format} if known.verb == "export_dataset" else {}
        return getattr(query, known.verb)(known.reference, known.target, **options).split("\n"), True
    frame = getattr(query, known.verb)(task=known.task)
    if known.json:
        return frame.to_json(orient="records", date_format="iso", indent=2).split("\n"), True
    if "coverage" in frame:
        frame["coverage"] = [_coverage(cell) for cell in frame["coverage"]]
    frame = frame.astype(object).where(frame.notna(), "-").apply(lambda column: column.map(printable))
    return ([f"no {known.verb}"] if frame.empty else frame.to_string(index=False, max_colwidth=60).split("\n")), True


def _told_of_zip(held: Mapping[str, Any]) -> Iterator[str]:
    """What `inspect` found, a line each; what is pickled last, since there may be much of it."""

    def layer(one: Any) -> str:
        return f"{one['inputs']} x {one['outputs']}" if "inputs" in one else f"cut at {one['limit']:g}"

    network, normalized = held["network"] or {}, held["normalized"] or {}
    cut = f", cut at {normalized['clip']:g}" if normalized.get("clip") is not None else ""
    layers = [one if isinstance(one, str) else layer(one) for one in network.get("layers", ())]
    hidden = [f"{width} {network['activation']}" for width in network.get("hidden", ())]
    shown = {
        "file": held["file"],
        "algorithm": f"{held['algorithm']} ({held['policy_class']})",
        "trained for": f"{held['timesteps']:,} steps" if held["timesteps"] else None,
        "saved by": f"stable-baselines3 {held['sb3_version'] or 'before 1.0'}, Python {held['python_version'] or '?'}",
        "observations": held["observation_space"],
        "actions": held["action_space"],
        "network": ", ".join(layers or hidden),
        "normalized": f"observations, by {normalized['shape']} statistics{cut}" if normalized else None,
        "wrappers": ", ".join(held["wrappers"]) or None,
        "frames": f"{held['frame_stack']} stacked" if (held["frame_stack"] or 1) > 1 else None,
        "import": f"refused: {held['refused']}"
        if held["refused"]
        else f"as a policy that acts and demonstrates{' and that PPO can go on from' * held['fine_tuned_by_ppo']}",
    }
    yield from (f"{name:14}{printable(text)}" for name, text in shown.items() if text)
    yield "pickled parts, none of which was executed, and what they ask Python for:"
    for part, names in held["pickled"].items():
        yield printable(f"  {part:32}{', '.join(names) or 'nothing'}")


def _told_of_check(checked: "Checked") -> Iterator[str]:
    """What `check` found: where the data is from, every rule with what became of it, then the figures, a line each."""
    report = checked.report
    yield from checked.source
    first = {finding.rule: finding for finding in reversed(report.findings)}
    for outcome in report.rules:
        detail = outcome.reason
        if outcome.findings:
            found = first[outcome.rule]
            where = "" if found.episode is None else f"episode {found.episode}"
            where += "" if found.step is None else f", step {found.step}"
            more = f" (and {outcome.findings - 1} more)" if outcome.findings > 1 else ""
            detail = f"{where + ': ' if where else ''}{found.message}: {found.value}, bound {found.bound}{more}"
        state = "holds" if outcome.state == "passed" else outcome.state
        yield f"{outcome.rule:24}{state:9}{printable(detail)}".rstrip()
    yield from (f"note: {note}" for note in report.notes)
    for name, value in checked.figures.items():
        if value is None:
            shown = "not known"
        elif value == []:
            shown = "none"
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        yield f"{name.replace('_', ' '):24}{shown}"
    verdict = "every rule that applies holds" if report.passed else f"fails: {', '.join(report.failed_rules)}"
    yield f"{report.episodes} episodes, {report.steps} steps: {verdict}"


def _coverage(episodes: dict[str, int] | None) -> str | None:
    """`{"low": 12, "high": 13}` -> `"2 scenarios, 12 to 13 each"`; the numbers themselves are in the JSON."""
    if not episodes:
        return None
    fewest, most = min(episodes.values()), max(episodes.values())
    only = f"{next(iter(episodes))} only" if len(episodes) == 1 else f"{len(episodes)} scenarios"
    return f"{only}, {fewest} each" if fewest == most else f"{only}, {fewest} to {most} each"


@contextlib.contextmanager
def _terminate_cleanly() -> Iterator[None]:
    """SIGTERM ends the run as an interrupt does, so that it is closed in the store and no worker is left.

    Once: `mlflow run` sends it to a command that a person has interrupted, a quarter of a second later.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not in the background
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, *[signal.SIGINT] * listens)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # then this process is on its way out
                signal.signal(number, handler)
