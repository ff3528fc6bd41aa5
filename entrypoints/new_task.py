"""Entry point `new_task`: `mlflow run . -e new_task -P env=CartPole-v1 -P name=cart_pole`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("new_task"))
