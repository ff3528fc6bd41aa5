"""Entry point `finetune`: `mlflow run . -e finetune`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("finetune"))
