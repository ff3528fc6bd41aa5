"""The config in docs/sweeps.md is one that works, and the page names every objective, sampler and pruner."""

import re
from typing import get_args, get_type_hints

import yaml

from pipeline.config.loading import validate
from pipeline.config.sweep import Objective, Sampler, Sweep
from pipeline.sweep.trials import trial_plan


def test_the_config_of_the_documentation_passes_every_check(repository, in_repository):
    text = (repository / "docs" / "sweeps.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.S)
    config = validate(Sweep, yaml.safe_load(block), "docs/sweeps.md")
    assert trial_plan(config).budget == 200_000
    assert config.constraints == {"collision_rate": 0.15, "comfort_exposure": 0.1}


def test_every_objective_and_sampler_is_explained(repository):
    text = (repository / "docs" / "sweeps.md").read_text()
    names = [get_args(get_type_hints(cls)["name"]) for cls in (Objective, Sampler)]
    assert all(re.search(rf"\b{name}\b", text) for group in names for name in group)


def test_the_shipped_configs_pass_every_check(repository, in_repository):
    for name in ("smoke", "social_nav"):
        trial_plan(validate(Sweep, yaml.safe_load((repository / f"configs/{name}/sweep.yaml").read_text()), name))
