"""What depends on the processor: the same work under each instruction set that the libraries here can be told to use.

    python -m benchmarks.processors           # a table: which results are equal bit for bit, which only within one kind
    python -m benchmarks.processors --tests   # make test-processors: the tests under each; code 1 when one is red

PyTorch, MKL, oneDNN, OpenBLAS, NumPy, numba and the C library choose kernels by the processor; each has a variable that
makes it take those of an older one. A set that changes no bit on this machine would prove nothing: its tests are not
run. On a processor that is not Intel's, MKL obeys `MKL_CBWR` alone.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.stages import Noise, Scripted
from pipeline.config.training import Cloning, Network

NATIVE = "native"
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "NUMBA_CPU_NAME": "haswell",
}
SSE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "NUMBA_CPU_NAME": "generic",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F",
}
SETS: dict[str, dict[str, str]] = {
    NATIVE: {},
    "AVX2": AVX2,
    "SSE4.2": SSE,
    "MKL's compatible branch": {"MKL_CBWR": "COMPATIBLE"},
}
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def digest(*arrays: Any) -> str:
    import numpy as np

    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:12]


def libraries() -> dict[str, str]:
    """What the libraries come to by themselves."""
    import numpy as np
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    sizes = [(rows, inputs, outputs) for rows in (1, 7, 64, 1024) for inputs in (8, 40, 128) for outputs in (1, 2, 64)]
    double = rng.standard_normal((113, 40))
    return {
        "PyTorch: matrix products": digest(*(normal(n, k) @ normal(k, m) for n, k, m in sizes)),
        "PyTorch: functions of one number": digest(*(f(normal(113, 40)) for f in (torch.exp, torch.tanh, torch.log1p))),
        "PyTorch: sums": digest(normal(113, 1001).sum(1), normal(4001).mean()),
        "PyTorch: convolutions": digest(functional.conv2d(normal(4, 3, 36, 36), normal(32, 3, 8, 8), stride=4)),
        "NumPy: matrix products": digest(double @ double.T, np.float32(double) @ np.float32(double).T),
        "NumPy: functions of one number": digest(np.exp(double), np.sin(double), np.tanh(np.float32(double))),
        "NumPy: sums": digest(double.sum(), np.float32(double).sum(axis=1), np.float32(double).mean()),
    }


def product(folder: Path) -> dict[str, str]:
    """What the product makes of one seed. `folder` keeps what the native set made, for the others to act and replay."""
    import numpy as np
    import torch

    from pipeline.config.loading import load, load_task
    from pipeline.config.stages import Collect, Finetune
    from pipeline.data import Trajectories, content_digest
    from pipeline.learning.cloning import clone
    from pipeline.learning.jobs import TrainingJob
    from pipeline.learning.train import train
    from pipeline.play.demonstrators import scripted
    from pipeline.play.evaluation import record, run_episodes
    from pipeline.policies import act_function, build_policy, load_policy, save_policy, weights_digest
    from pipeline.tasks import Purpose, Task
    from pipeline.validation.replay import TaskReplay, replay_episodes

    torch.set_num_threads(1)
    results: dict[str, str] = {}
    for name in ("social_nav", "lunar_lander", "quadruped"):
        task, config = Task(load_task(f"configs/tasks/{name}.yaml")), load(Collect, f"configs/{name}/collect.yaml")
        config = replace(config, episodes=20, filter=replace(config.filter, min_return=None), noise=Noise(std=0.1))
        script = config.scripted or Scripted(demonstrator="benchmarks.social_nav_planners:dynamic_window")
        recorded, _ = record(task, config, scripted(script.demonstrator, script.kwargs).actor)
        results[f"{name}: recorded from a script"] = content_digest(recorded)
        kept = folder / f"{name}.npz"
        if not kept.exists():
            np.savez(kept, **recorded.to_arrays())
        with np.load(kept, allow_pickle=False) as arrays:
            native = Trajectories.from_arrays(arrays)
        replay = TaskReplay(task)
        replays = replay_episodes(native, replay, range(len(native)))
        results[f"{name}: native episodes that replay bit for bit"] = (
            f"{sum(r.identical for r in replays)} of {len(native)}"
        )
        replay.close()
        if name != "social_nav":
            continue
        policy = build_policy(task.observation_space, task.action_space, Network(hidden=(64, 64)), seed=1)
        clone(policy, native, Cloning(epochs=5, critic_epochs=2, select="validation_loss"), seed=1)
        results["social_nav: cloned from the same episodes"] = weights_digest(policy)
        if not (folder / "policy").exists():
            save_policy(policy, folder / "policy", {})
        act = act_function(load_policy(folder / "policy"))
        results["social_nav: actions of one policy on the same observations"] = digest(act(native.observations))
        figures = run_episodes(task, act, task.episodes("train", 7, 50, Purpose.EVALUATE)).metrics
        results["social_nav: evaluation of one policy"] = digest(*figures.values())
        training = load(Finetune, "configs/smoke/finetune.yaml").training
        with tempfile.TemporaryDirectory() as output:
            trained = train(TrainingJob(task.config, training, 1, output, final_episodes=1), lambda _: None)
        results["social_nav: PPO, 4,096 steps"] = trained.last_digest
    return results


def children(arguments: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], env={**os.environ, **variables}, text=True, capture_output=True)


def measure(folder: str) -> dict[str, dict[str, str]]:
    """Set -> what -> digest, each set in a process of its own."""
    measured: dict[str, dict[str, str]] = {}
    for name, variables in SETS.items():
        done = children(["-m", "benchmarks.processors", "--digests", folder], {**ONE_THREAD, **variables})
        if done.returncode:
            sys.exit(f"{name}: {done.stderr}")
        measured[name] = json.loads(done.stdout.splitlines()[-1])
    return measured


def table(measured: dict[str, dict[str, str]]) -> None:
    sets = [name for name in measured if name != NATIVE]
    print(f"| against the native instruction set | {' | '.join(sets)} |\n|---|{'---|' * len(sets)}")
    for what, native in measured[NATIVE].items():
        cells = [
            measured[name][what] if " of " in native else "equal" if measured[name][what] == native else "differs"
            for name in sets
        ]
        print(f"| {what} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", action="store_true", help="run the tests under each set")
    parser.add_argument("--digests", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.digests:
        print(json.dumps({**libraries(), **product(Path(options.digests))}))
        return
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(folder)
    table(measured)
    if not options.tests:
        return
    red = []
    for name, variables in SETS.items():
        if name != NATIVE and measured[name] == measured[NATIVE]:
            print(f"{name}: changes no bit here, not run")
            continue
        print(f"--- {name}: {' '.join(f'{key}={value!r}' for key, value in variables.items())}", flush=True)
        tests = [sys.executable, "-m", "pytest", "-n", "2", "-m", "not slow", "--durations=0", "--no-header"]
        if subprocess.run(tests, env={**os.environ, **variables}).returncode:
            red.append(name)
    sys.exit(f"red under: {', '.join(red)}" if red else 0)


if __name__ == "__main__":
    main()
