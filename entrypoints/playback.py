"""Entry point `playback`: `mlflow run . -e playback`."""

from pipeline.cli import stage_main

if __name__ == "__main__":
    raise SystemExit(stage_main("playback"))
