"""One training loop for every stage: engine, objective, mixture, checkpoint."""
