"""Entry point `evaluate`: `mlflow run . -e evaluate`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("evaluate"))
