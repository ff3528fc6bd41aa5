"""Numbers into claims: estimates with intervals, sample efficiency, comparison of arms, distribution shift.

Every evaluation needs `estimate`; then `efficiency` (timesteps to target, ratios, bill), `aggregate` (interquartile
mean, probability of improvement, profile), `comparison` (the verdict), `planning` (how many more seeds), `shift` (are
these two sets of observations alike), `imitation_verdict` (did a clone learn anything), `suspicions` (why not), `snqi`.
"""
