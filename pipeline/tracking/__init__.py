"""Runs, tags, artifacts and the model registry. The only room that knows MLflow."""
