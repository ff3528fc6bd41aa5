"""Everything with a gradient in it: PPO from scratch and from a clone, cloning, and running seeds side by side."""
