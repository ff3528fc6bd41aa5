"""Everything with a gradient in it: PPO from scratch and from a clone, SAC, and cloning."""
