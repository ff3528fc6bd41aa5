"""Says that data is wrong: the catalogue of rules, re-simulation, and the inspection of datasets."""
