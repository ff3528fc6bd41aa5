"""Runs, datasets, policies and versions in MLflow.

A metric's way: a training emits it (`learning.train`), `seed_runs` logs it to the training's run, which appends it to
the `spool`, whose delivery does the operation to the store.

`store`, `references`, `runs`, `registry` and `lineage` answer questions and load no torch; the others write, or load.
"""
