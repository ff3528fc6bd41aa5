"""Entry point `promote`: `mlflow run . -e promote`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("promote"))
