"""Entry point `train_expert`: `mlflow run . -e train_expert`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("train_expert"))
