"""Entry point `main`: `mlflow run . -e main`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("main"))
