"""A policy acts in an environment: rollouts, records, demonstrators, films, probing."""
