"""`python -m pipeline <verb>`: questions to the store. Nothing here changes it."""

from pipeline.cli import ask

if __name__ == "__main__":
    raise SystemExit(ask())
