"""Entry point `pretrain`: `mlflow run . -e pretrain`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("pretrain"))
