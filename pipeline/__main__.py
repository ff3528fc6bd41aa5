"""`python -m pipeline <verb>`: questions to the store, which change nothing; `sync` alone delivers what waits."""

from pipeline.cli import ask

if __name__ == "__main__":
    raise SystemExit(ask())
