"""Entry point `collect`: `mlflow run . -e collect`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("collect"))
