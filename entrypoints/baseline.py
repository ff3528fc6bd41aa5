"""Entry point `baseline`: `mlflow run . -e baseline`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("baseline"))
