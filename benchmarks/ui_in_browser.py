"""Opens the MLflow UI on a store in headless Chromium, checks what a person would see, and keeps the pictures.

    python benchmarks/ui_in_browser.py                                     # of a smoke `main`, made for the purpose
    python benchmarks/ui_in_browser.py sqlite:///mlflow.db --pictures docs/img    # of a store with one `main` in it

Looked at: the view of what `main` came to, its run, films by step, a training with its film, two matched seeds beside
each other, their parameters, the arms as means over seeds and by step, what came from an expert, trainings by success,
and the expert's version with its film. Exit code 1 and a list when something is not there. Not part of `make test`,
because it needs a Chromium or Chrome in PATH, and the package websockets.
"""

import argparse
import base64
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow import MlflowClient
from report_in_browser import BROWSERS
from websockets.sync.client import ClientConnection, connect

from pipeline.names import Arm, Tag, registered_model
from pipeline.tracking.runs import search
from pipeline.tracking.views import FINAL, VIEWS, view_address

PATIENCE_SECONDS = 90.0
WINDOW = (1400, 900)
# MLflow's page asks for fonts of other systems; without these, digits come from one of emoji
FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>
<include ignore_missing="yes">/etc/fonts/fonts.conf</include>
<match target="pattern"><edit name="family" mode="prepend" binding="strong"><string>DejaVu Sans</string></edit></match>
</fontconfig>"""
NO_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"

# films that the page has loaded
FILMS = "[...document.images].filter(i => i.src.includes('images') && i.src.includes('webp') && i.naturalWidth).length"
ALL_OF_A_DESCRIPTION = """[...document.querySelectorAll('*')].filter(
    e => !e.children.length && e.textContent.trim() === 'Show more'
).slice(0, 1).forEach(e => e.dispatchEvent(new MouseEvent('click', {bubbles: true})))"""
SCROLL = """.forEach(text => [...document.querySelectorAll('*')].filter(
    e => !e.children.length && e.textContent.trim() === text
).slice(-1).forEach(e => e.scrollIntoView({block: 'center'})))"""


@dataclass(frozen=True)
class Look:
    """A page of the UI and texts that must be on it."""

    name: str
    path: str  # behind `#/`
    texts: Sequence[str]
    pictures: int = 0  # films
    scrolled_to: str = ""  # a text that is brought to the top


class Browser:
    """A headless Chromium, spoken to by its debugging protocol."""

    def __init__(self, program: str, folder: Path) -> None:
        port = free_port()
        (folder / "fonts.conf").write_text(FONTS)
        self._process = subprocess.Popen(
            [
                program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                f"--user-data-dir={folder}/profile", f"--window-size={WINDOW[0]},{WINDOW[1]}",
                f"--remote-debugging-port={port}", "about:blank",
            ],
            env={**os.environ, "FONTCONFIG_FILE": str(folder / "fonts.conf")},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        pages = json.loads(answer(f"http://127.0.0.1:{port}/json"))
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        self._stack = ExitStack()
        self._socket: ClientConnection = self._stack.enter_context(connect(address, max_size=None))
        self._numbers = itertools.count(1)
        self.do("Page.enable")
        self.do("Page.addScriptToEvaluateOnNewDocument", source=NO_ASSISTANT)

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something and wait until it is done."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message: dict[str, Any] = json.loads(self._socket.recv(timeout=PATIENCE_SECONDS))
            if message.get("id") == number:
                result: dict[str, Any] = message.get("result", {})
                return result

    def evaluated(self, expression: str) -> Any:
        """The value of JavaScript in the page."""
        return self.do("Runtime.evaluate", expression=expression, returnByValue=True).get("result", {}).get("value")

    def missing(self, address: str, look: Look) -> list[str]:
        """Open a page; what does not come to stand on it."""
        self.do("Page.navigate", url="about:blank")
        self.do("Page.navigate", url=address)
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            page = " ".join(str(self.evaluated("document.body.innerText")).split())
            left = [text for text in look.texts if text not in page]
            if self.evaluated(FILMS) < look.pictures:
                left.append("a film")
            if not left or time.monotonic() > until:
                self.evaluated(f"[{json.dumps(look.scrolled_to)}].filter(text => text)" + SCROLL)
                self.evaluated(ALL_OF_A_DESCRIPTION)
                time.sleep(2.0)  # what moves comes to rest
                return left
            time.sleep(0.5)

    def picture(self) -> bytes:
        """The window as a PNG."""
        return base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        self._stack.close()
        self._process.terminate()
        self._process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer(address: str) -> bytes:
    """What a server says once it has started."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as response:
                content: bytes = response.read()
                return content
        except (urllib.error.URLError, OSError):
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def looks(client: MlflowClient) -> list[Look]:
    """What a reviewer would open, on the newest finished `main` of the store."""
    (main,) = search(client, {Tag.STAGE: "main"}, limit=1)
    task, experiment = main.data.tags[Tag.TASK], main.info.experiment_id
    (expert,) = search(client, {Tag.STAGE: "train_expert", Tag.TASK: task}, limit=1)
    arms = {"finetune": Arm.PRETRAINED, "baseline": Arm.SCRATCH}
    first = {stage: search(client, {Tag.STAGE: f"{stage}_seed", Tag.ARM: arm})[-1] for stage, arm in arms.items()}
    ids = quote(json.dumps([run.info.run_id for run in first.values()]))
    dataset = main.inputs.dataset_inputs[0].dataset.name
    typed = "workflowType=machine_learning"
    runs = f"experiments/{experiment}/runs?{typed}"
    views = {name: view_address(experiment, name).removeprefix("#/") for name in VIEWS}
    came_from = quote(f"tags.`lineage.expert_run_id` = '{expert.info.run_id}'")
    by_steps = f"orderByKey={quote('metrics.`bill/environment_steps`')}&orderByAsc=false"  # by a metric none are nested
    names = [run.info.run_name for run in first.values()]
    version = f"models/{registered_model(task)}/versions/1"
    settings = ["arm", "scratch", "pretrained", "cfg.training.learning_rate"]
    comparison = f"compare-runs?runs={ids}&experiments={quote(json.dumps([experiment]))}&{typed}"
    run_page = f"experiments/{experiment}/runs/{{}}?{typed}".format
    headline = ["verdict", "comparison", "sample_efficiency/ratio", *FINAL.values()]
    return [
        Look(
            "runs", views["comparisons"], ["Imitation pre-training of PPO", "What main came to", "main", *headline[:3]]
        ),
        Look("main", run_page(main.info.run_id), ["every stage for one task", *headline[2:], dataset]),
        Look("films", views["films"], ["Films by step", *names], pictures=2),
        Look("training", run_page(first["finetune"].info.run_id), ["all films by step", dataset], pictures=1),
        Look("compare", comparison, ["Parallel Coordinates", *names, *settings]),
        Look("parameters", comparison, [*names, *settings], scrolled_to="cfg.training.learning_rate"),
        Look(
            "arms",
            views["arms"],
            [
                "Arms: mean over seeds",
                "Group: arm: pretrained, group: ",
                "Group: arm: scratch, group: ",
                "final/success_rate",
            ],
        ),
        Look("curves", views["curves"], ["Arms: success by step", "eval/success_rate"]),
        Look(
            "descendants",
            f"{runs}&searchFilter={came_from}&{by_steps}",
            ["matching runs", "collect", "pretrain", "finetune", "compare"],
        ),
        Look("success", views["trainings"], ["final/success_rate", "finetune · pretrained", "arm", "seed"]),
        Look(
            "version",
            f"{version}?{typed}",
            ["What the gate found", "All", "checks hold", "success_rate", "approved"],
            pictures=1,
        ),
    ]


def smoke_store(folder: Path) -> str:
    """The store of a `main` on the smoke configs."""
    uri = f"sqlite:///{folder}/mlflow.db"
    command = [sys.executable, "-m", "entrypoints.main", "--config", "configs/smoke/main.yaml"]
    command += ["--visualize_every", "1024"]
    subprocess.run(command, env={**os.environ, "MLFLOW_TRACKING_URI": uri}, check=True)
    return uri


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", help="tracking URI; none makes a store")
    parser.add_argument("--pictures", type=Path, help="folder to keep the pictures in, as ui_<page>.png")
    arguments = parser.parse_args()
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        print(f"error: no browser in PATH; install one of {', '.join(BROWSERS)}", file=sys.stderr)
        return 2
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        folder, port = Path(place), free_port()
        uri = arguments.store or smoke_store(folder)
        os.environ["MLFLOW_TRACKING_URI"] = uri
        serve = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--port", str(port)]
        server = subprocess.Popen([*serve, "--workers", "1"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            answer(f"http://127.0.0.1:{port}/health")
            browser = Browser(program, folder)
            for look in looks(MlflowClient()):
                missing = browser.missing(f"http://127.0.0.1:{port}/#/{look.path}", look)
                print(f"{look.name}: {'all there' if not missing else f'not there: {missing}'}")
                wrong += bool(missing)
                if arguments.pictures is not None:
                    (arguments.pictures / f"ui_{look.name}.png").write_bytes(browser.picture())
            browser.close()
        finally:
            server.terminate()
            server.wait()
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
