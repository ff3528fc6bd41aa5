"""Opens a comparison report in headless Chromium at desktop and phone width and checks what a person would see.

    python benchmarks/report_in_browser.py                      # of a tiny comparison, made for the purpose
    python benchmarks/report_in_browser.py report.html          # exit code 1 and a list when something is wrong
    python benchmarks/report_in_browser.py report.html --picture docs/img/report.png    # also its first screen

Checked at 1280 and 390 pixels, light and dark, and as printed: no content wider than the window, every section has a
heading and content, every figure is drawn, its texts lie inside it and none on another, every picture is decoded, no
line of text is cut, no column of a table at desktop width, folded or not, films have room for their controls, the
verdict lies within the first screen; in print tables and commands fit the paper, what is
folded is open, and films are pictures.
Not part of `make test`, because it needs a Chromium or Chrome in PATH.
"""

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WINDOWS = ((1280, 900), (390, 844))
SCHEMES = {"light": "1", "dark": "0"}  # values of Chromium's preferredColorScheme
PAPER = (718, 1000)  # A4 with Chromium's margins

MEASURE = """
const frame = document.querySelector("iframe");
const faults = [];
function check() {
  const page = frame.contentDocument, root = page.documentElement, width = WIDTH, height = HEIGHT;
  if (root.scrollWidth > width) faults.push(`the page is ${root.scrollWidth} px wide, the window ${width}`);
  for (const section of page.querySelectorAll("section")) {
    if (!section.querySelector("h2")) faults.push(`section ${section.id} has no heading`);
    if (section.children.length < 2) faults.push(`section ${section.id} is empty`);
  }
  for (const link of page.querySelectorAll("nav a"))
    if (!page.querySelector(link.getAttribute("href"))) faults.push(`${link.textContent} leads nowhere`);
  for (const figure of page.querySelectorAll("figure svg")) {
    const box = figure.getBoundingClientRect(), name = figure.parentElement.getAttribute("aria-label");
    if (box.width < 100 || box.height < 30) faults.push(`figure "${name}" is not drawn`);
    const seen = [];
    for (const text of figure.querySelectorAll("text")) {
      const at = text.getBoundingClientRect();
      for (const [other, words] of seen) {
        const wide = Math.min(at.right, other.right) - Math.max(at.left, other.left);
        const high = Math.min(at.bottom, other.bottom) - Math.max(at.top, other.top);
        if (wide > 2 && high > 0.35 * Math.min(at.height, other.height))
          faults.push(`figure "${name}": "${text.textContent.trim()}" lies on "${words}"`);
      }
      if (at.width && text.textContent.trim()) seen.push([at, text.textContent.trim()]);
      if (at.width && (at.left < box.left - 2 || at.right > box.right + 2 || at.bottom > box.bottom + 2))
        faults.push(`figure "${name}": "${text.textContent.trim()}" is cut`);
    }
  }
  for (const image of page.querySelectorAll("img"))
    if (image.offsetWidth && !(image.complete && image.naturalWidth))
      faults.push(`picture "${image.alt}" is not shown`);
  for (const element of page.querySelectorAll("h1, h2, p, li, header td, nav, .plot")) {
    const at = element.getBoundingClientRect();
    if (at.right > width + 1)
      faults.push(`<${element.tagName.toLowerCase()}> sticks out: ${element.textContent.slice(0, 40)}`);
  }
  for (const element of page.querySelectorAll(".name, .detail, header td, header th, figcaption, summary, h2"))
    if (element.scrollWidth > element.clientWidth + 2 && element.clientWidth)
      faults.push(`text is cut: ${element.textContent.slice(0, 40)}`);
  if (!PRINTED && width > 1000) {
    for (const folded of page.querySelectorAll("details")) folded.open = true;
    for (const table of page.querySelectorAll(".scroll"))
      if (table.scrollWidth > table.clientWidth + 2)
        faults.push(`a column is cut: ${table.textContent.trim().slice(0, 40)}`);
  }
  for (const film of page.querySelectorAll("video"))
    if (film.offsetWidth && film.clientHeight < film.parentElement.querySelector("img").clientHeight + 40)
      faults.push("the controls of a film lie on its captions");
  if (PRINTED) {
    for (const element of page.querySelectorAll(".scroll, pre"))
      if (element.scrollWidth > element.clientWidth + 2)
        faults.push(`does not fit the paper: ${element.textContent.trim().slice(0, 40)}`);
    for (const folded of page.querySelectorAll("details"))
      if (folded.clientHeight < 1.5 * folded.querySelector("summary").clientHeight)
        faults.push(`stays folded: ${folded.querySelector("summary").textContent}`);
    for (const film of page.querySelectorAll("video")) {
      const picture = film.parentElement.querySelector("img")?.getBoundingClientRect();
      const room = film.closest("figure").getBoundingClientRect();
      if (film.offsetWidth || !picture?.width || picture.right > room.right + 1)
        faults.push("a film is printed, or has no picture to be printed, or one that does not fit");
    }
  }
  const badge = page.querySelector("header > p > strong").getBoundingClientRect();
  if (badge.bottom > height && !PRINTED) faults.push("the verdict lies below the first screen");
  const background = frame.contentWindow.getComputedStyle(root).backgroundColor;
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify({
    faults, background, sections: page.querySelectorAll("section").length,
    height: Math.ceil(page.querySelector("nav").getBoundingClientRect().top)});
  document.body.append(result);
}
frame.addEventListener("load", () => setTimeout(check, 300));
"""


def measure(browser: str, report: str, size: tuple[int, int], scheme: str, printed: bool) -> dict[str, object]:
    """What the browser found: `faults`, `background`, `sections`, the `height` of the first screen."""
    if printed:  # Chromium prints from a protocol alone, so that the rules of paper are put on the screen
        report = report.replace("@media print", "@media all")
    width, height = size
    values = {"WIDTH": str(width), "HEIGHT": str(height), "PRINTED": str(printed).lower()}
    script = re.sub("|".join(values), lambda name: values[name[0]], MEASURE)
    # the same origin as the page around it, so that the page around it may look inside
    wrapper = (
        f'<!doctype html><body style="margin:0"><iframe style="border:0;width:{width}px;height:{height}px" '
        f'srcdoc="{html.escape(report)}"></iframe>'
        f"<script>{script}</script>"
    )
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "wrapper.html"
        page.write_text(wrapper, encoding="utf-8")
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            f"--user-data-dir={folder}/profile", f"--window-size={max(width, 520)},{height}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", "--virtual-time-budget=5000", "--dump-dom",
            page.as_uri(),
        ]  # fmt: skip
        dump = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="result">(.*?)</pre>', dump, re.DOTALL)
    if found is None:
        raise RuntimeError("the browser did not finish measuring the page")
    result: dict[str, object] = json.loads(html.unescape(found[1]))
    return result


def take_picture(browser: str, report: str, size: tuple[int, int], file: Path) -> None:
    """The top of the page, in a window of this size, as a PNG."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(report, encoding="utf-8")
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={folder}/profile", f"--window-size={size[0]},{size[1]}",
            f"--screenshot={file.resolve()}", page.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, capture_output=True, timeout=120, check=True)
    picture = Image.open(file).convert("RGB")
    picture.quantize(256, method=Image.Quantize.MAXCOVERAGE).save(file, optimize=True)


def smoke_report() -> str:
    """The report of `main` on the smoke configs, made in a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        command = [sys.executable, "-m", "entrypoints.main", "--config", "configs/smoke/main.yaml"]
        subprocess.run(command, env=environment, check=True)
        (report,) = Path(folder).rglob("report/report.html")
        return report.read_text(encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, nargs="?", help="a report.html; none makes one")
    parser.add_argument("--picture", type=Path, help="PNG to keep the first screen in, as a desktop shows it by day")
    arguments = parser.parse_args()
    chosen: Path | None = arguments.report
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        print(f"error: no browser in PATH; install one of {', '.join(BROWSERS)}", file=sys.stderr)
        return 2
    report = smoke_report() if chosen is None else chosen.read_text(encoding="utf-8")
    wrong = 0
    looks = [(size, scheme, False) for size in WINDOWS for scheme in SCHEMES] + [(PAPER, "light", True)]
    for size, scheme, printed in looks:
        result = measure(browser, report, size, scheme, printed)
        faults, how = result["faults"], "printed" if printed else scheme
        assert isinstance(faults, list)
        print(f"{size[0]} px, {how} ({result['background']}): {result['sections']} sections, {len(faults)} faults")
        for fault in faults:
            print(f"  {fault}")
        wrong += len(faults)
        if arguments.picture is not None and (size, how) == (WINDOWS[0], "light"):
            take_picture(browser, report, (size[0], int(str(result["height"]))), arguments.picture)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
