"""Entry point `compare`: `mlflow run . -e compare`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("compare"))
