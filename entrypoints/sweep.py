"""Entry point `sweep`: `mlflow run . -e sweep`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("sweep"))
