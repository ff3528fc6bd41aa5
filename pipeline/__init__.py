"""MLflow-centred pipeline for imitation pre-training of PPO policies."""
