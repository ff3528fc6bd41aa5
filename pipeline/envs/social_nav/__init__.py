"""Social navigation: a robot among pedestrians. Importing this package registers `SocialNav-v0` with Gymnasium."""

import gymnasium

if "SocialNav-v0" not in gymnasium.registry:
    gymnasium.register(
        "SocialNav-v0",
        entry_point="pipeline.envs.social_nav.environment:SocialNavEnv",
        disable_env_checker=True,
    )
