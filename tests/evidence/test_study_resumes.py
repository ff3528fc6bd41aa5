"""The shipped study asks for what the claim needs, and differs from the demo in nothing else."""

from dataclasses import replace

from pipeline.config.loading import load
from pipeline.config.stages import Main
from pipeline.stages.main import plan


def test_the_study_is_the_demo_with_ten_matched_seeds_in_four_arms_and_a_name(in_repository):
    study, demo = (plan(load(Main, f"configs/social_nav/{name}.yaml")) for name in ("study", "main"))
    assert study.finetune.seeds == study.pretrain.seeds == tuple(range(1, 11))
    assert study.finetune.control_timesteps > 0
    for stage in ("train_expert", "promote", "collect", "compare"):
        assert getattr(study, stage) == getattr(demo, stage)
    assert study.finetune.training == demo.finetune.training
    assert study.finetune.warm_start == demo.finetune.warm_start
    assert study.pretrain.cloning == demo.pretrain.cloning
    assert load(Main, "configs/social_nav/study.yaml").group is not None


def test_matched_seeds_follow_the_first_seed(in_repository):
    config = replace(load(Main, "configs/smoke/main.yaml"), seed=40, matched_seeds=4)
    stages = plan(config)
    assert stages.finetune.seeds == stages.pretrain.seeds == (40, 41, 42, 43)
