"""What the repository promises about itself: dependencies, entry points, and what its code never does."""

import ast
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import yaml

from pipeline.config.stages import STAGE_CONFIGS
from pipeline.names import STAGES

ROOT = Path(__file__).resolve().parents[2]
TASK_NAMES = sorted(path.stem for path in ROOT.glob("configs/tasks/*.yaml"))


def tracked(*patterns: str) -> list[Path]:
    """Committed files, or every file where this is no git checkout."""
    found = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        listed = [str(path.relative_to(ROOT)) for pattern in patterns or ["*"] for path in ROOT.rglob(pattern)]
        return [ROOT / name for name in listed if not name.startswith((".venv", "mlartifacts", "mlruns"))]
    listed = found.stdout.split("\0")
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


# --- dependencies ----------------------------------------------------------------------------------------------------


def test_conda_and_pyproject_list_the_same_dependencies():
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    assert sorted(pip) == sorted(project()["project"]["dependencies"])
    assert f"python{project()['project']['requires-python']}" in conda


def test_every_pinned_version_satisfies_the_lower_bound():
    from packaging.requirements import Requirement

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line.partition("#")[0].strip())
            pins[pin.name.lower().replace("_", "-")] = str(pin.specifier).removeprefix("==")
    for text in project()["project"]["dependencies"]:
        requirement = Requirement(text)
        assert requirement.name in pins, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(pins[requirement.name], prereleases=True), text


def test_every_package_that_is_imported_is_a_declared_dependency():
    import sys
    from importlib.metadata import packages_distributions, requires

    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in project()["project"]["dependencies"]]
    extras = project()["project"]["optional-dependencies"]
    declared = {Requirement(text).name.lower() for name in extras if name != "dev" for text in extras[name]}
    declared |= {requirement.name.lower() for requirement in requirements}
    for requirement in requirements:  # `minari[hdf5]` declares what that extra brings
        for brought in map(Requirement, requires(requirement.name) or ()):
            if brought.marker and any(brought.marker.evaluate({"extra": extra}) for extra in requirement.extras):
                declared.add(brought.name.lower())
            if not brought.marker and str(brought.specifier).startswith("=="):  # one package in two: pydantic-core
                declared.add(brought.name.lower())
    provided = packages_distributions()
    own = {"pipeline", "entrypoints"}
    imported = {name for path in sources("pipeline", "entrypoints") for name in imports(path)}
    for name in sorted(imported - own - set(sys.stdlib_module_names)):
        distributions = {d.lower().replace("_", "-") for d in provided.get(name, [name])}
        assert distributions & declared, f"{name} is imported but not declared"


@cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def imports(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports."""
    found = set()
    for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_no_committed_file_holds_the_address_of_a_package_index():
    address = re.compile(
        r"--(extra-)?index-url|--find-links|--trusted-host|index-url\s*=|pypi\.org|pythonhosted\.org|/simple/?[\s'\"]"
        r"|conda\.anaconda\.org|download\.pytorch\.org|https?://[^\s/]*(artifactory|nexus|devpi|mirror)",
        re.IGNORECASE,
    )
    here = Path(__file__)
    for path in tracked():
        if path == here or path.suffix in (".png", ".gif", ".mp4", ".npz"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            assert not address.search(line), f"{path.relative_to(ROOT)}:{number}: {line[:120]}"


# --- entry points ----------------------------------------------------------------------------------------------------


def mlproject() -> dict:
    return yaml.safe_load((ROOT / "MLproject").read_text())


def test_entry_points_modules_and_configs_are_the_same_words():
    declared = set(mlproject()["entry_points"])
    scripts = {path.stem for path in (ROOT / "entrypoints").glob("*.py")} - {"__init__"}
    modules = {path.stem for path in (ROOT / "pipeline" / "stages").glob("*.py")} - {"__init__"}
    assert declared == scripts == modules == set(STAGE_CONFIGS)
    assert declared <= set(STAGES)


def test_an_entry_point_passes_its_config_which_exists_and_exactly_the_references_that_its_stage_takes():
    from importlib import import_module

    for stage, entry in mlproject()["entry_points"].items():
        upstream = import_module(f"pipeline.stages.{stage}").UPSTREAM
        assert set(entry["parameters"]) == {"config", *upstream}, stage
        arguments = " ".join(f"--{name} {{{name}}}" for name in entry["parameters"])
        assert entry["command"] == f"python -m entrypoints.{stage} {arguments}"
        assert (ROOT / entry["parameters"]["config"]["default"]).is_file(), stage


def test_a_script_is_a_few_lines_that_name_their_stage():
    for path in (ROOT / "entrypoints").glob("[a-z]*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 8
        assert f'stage_main("{path.stem}")' in text


# --- what the code never does ----------------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """(dotted name, call) of every call in a file: `np.load(x)` -> `("np.load", ...)`."""
    return [
        (ast.unparse(node.func), node)
        for node in ast.walk(parsed(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def keyword(call: ast.Call, name: str) -> object:
    """The constant that a call passes by keyword; None when it does not."""
    found = [k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)]
    return found[0] if found else None


def unsafe_imports(path: Path) -> set[str]:
    """Modules that decode such data; to know their errors by name is harmless."""
    tree = parsed(path.read_text(encoding="utf-8"))
    errors = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and all(alias.name.endswith("Error") for alias in node.names)
    ]
    found = UNSAFE_MODULES & imports(path)
    named = {
        (node.module or "").partition(".")[0] if isinstance(node, ast.ImportFrom) else alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in errors
        for alias in node.names
    }
    return found & named


def dangers(path: Path) -> list[str]:
    """What in a file could run what data says: `cli.py:12: eval`."""
    found = sorted(unsafe_imports(path))
    for name, call in calls(path):
        last = name.rpartition(".")[2]
        given = {k.arg for k in call.keywords}
        dangerous = (
            name in UNSAFE_CALLS
            or keyword(call, "allow_pickle") is True
            or (name in ("np.load", "numpy.load") and keyword(call, "allow_pickle") is not False)
            or (name in ("torch.load", "th.load") and keyword(call, "weights_only") is not True)
            or (last == "load_from_zip_file" and keyword(call, "load_data") is not False)
            or name in ("PPO.load", "BaseAlgorithm.load", "ActorCriticPolicy.load", "VecNormalize.load")
            or (
                last in ("load", "load_all")
                and name.startswith("yaml.")
                and (name, "Loader" in given) != ("yaml.load", True)
            )
            or last in ("unsafe_load", "full_load", "read_pickle", "to_pickle")
        )
        if dangerous:
            found.append(f"{path.name}:{call.lineno}: {name}")
    return found


def test_no_file_loads_data_that_could_run_code(tmp_path):
    assert not [danger for path in sources("pipeline", "entrypoints") for danger in dangers(path)]
    for line in (
        "import pickle", "from joblib import load", "eval('1')", "np.load(f)", "np.load(f, allow_pickle=True)",
        "torch.load(f)", "th.load(f, weights_only=False)", "load_from_zip_file(f)", "PPO.load(f)", "yaml.load(f)",
        "yaml.load_all(f, Loader=L)", "yaml.full_load(f)", "pd.read_pickle(f)",
    ):  # fmt: skip
        (tmp_path / "file.py").write_text(line)
        assert dangers(tmp_path / "file.py"), line


def test_everything_that_is_printed_goes_through_one_function():
    """Which makes foreign text harmless to a terminal; whoever prints past it forgets that."""
    for path in sources("pipeline", "entrypoints"):
        here = [call.lineno for name, call in calls(path) if name in ("print", "sys.stdout.write", "sys.stderr.write")]
        assert len(here) == (path.name == "errors.py"), f"{path.relative_to(ROOT)}: {here}: use pipeline.errors.say"


def test_nothing_in_the_code_knows_a_task_by_name():
    """Only the rooms of the task itself do, and examples in docstrings."""
    for path in sources("pipeline", "entrypoints"):
        others = [task for task in TASK_NAMES if task not in path.parts and task != path.stem]
        tree = parsed(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False)
        }
        # a text that stands alone as a statement documents the field above it
        docstrings |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                assert not any(task in node.value for task in others), where
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert not any(task in ast.unparse(node) for task in others), where


def test_no_two_types_and_no_two_modules_have_one_name():
    """But for settings, which are named as what they are of (`config/sweep.py`), and the stage of a room's name."""
    types: dict[str, list[str]] = {}
    modules: dict[str, list[str]] = {}
    for path in sources("pipeline"):
        where = str(path.relative_to(ROOT))
        for node in parsed(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                types.setdefault(node.name, []).append(where)
        name = path.parent.name if path.stem == "__init__" else path.stem
        if path.parent.name not in ("config", "stages") or path.stem == "__init__":
            modules.setdefault(name, []).append(where)
    assert not {name: places for name, places in (types | modules).items() if len(places) > 1}


def test_every_room_stands_in_the_readme():
    rooms = {path.name + "/" for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").is_file()}
    rooms |= {path.name for path in (ROOT / "pipeline").glob("[a-z]*.py")}
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The tree")[2]
    assert not {room for room in rooms if f"`{room}`" not in tree}


def test_code_that_the_documentation_names_is_there():
    for page in tracked("*.md"):
        for name in re.findall(
            r"\b(?:pipeline|entrypoints|tests|benchmarks)/[\w/]+\.py", page.read_text(encoding="utf-8")
        ):
            assert (ROOT / name).is_file(), f"{page.relative_to(ROOT)}: {name}"


def test_no_committed_file_names_a_machine_path_or_waits_to_be_done():
    forbidden = re.compile(r"(/home/|/Users/|/root/)\w|\bTODO\b|\bFIXME\b|\bXXX\b")
    here = Path(__file__)
    for path in tracked("*.py", "*.md", "*.yaml", "*.toml", "Makefile", "MLproject", "*.sh", ".ci/*"):
        if path == here:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not forbidden.search(line), f"{path.relative_to(ROOT)}:{number}: {line[:120]}"


def test_make_works_in_a_folder_with_a_space_and_an_umlaut_and_makes_the_store_before_the_demo(tmp_path):
    """The recipes are run as they are; the programs they call only write down how they were called."""
    folder = tmp_path / "a b ü"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    say = '#!/bin/sh\necho "$(basename "$0") $*" >>calls\n'
    stub = folder / "python-of-the-system"
    made = "\n".join(f"cp made .venv/bin/{name}" for name in ("python", "uv", "mlflow"))
    stub.write_text(f'{say}case "$2" in venv) mkdir -p .venv/bin\n{made};; esac\n')
    (folder / "made").write_text(say)
    for program in (stub, folder / "made"):
        program.chmod(0o755)
    done = subprocess.run(["make", "demo", f"PYTHON=./{stub.name}"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = (folder / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls[1:]] == [stub.name, "python", "uv", "python", "mlflow"]
    assert f"--python {folder}/.venv/bin/python" in calls[3]
    assert calls[4] == "python -m pipeline store"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b ü"]
