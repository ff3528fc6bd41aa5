"""Entry point `reproduce`: `mlflow run . -e reproduce`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("reproduce"))
