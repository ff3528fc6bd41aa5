"""Entry point `validate`: `mlflow run . -e validate`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("validate"))
