"""Model cards: what a model hub shows of an exported model, made from the manifests of the run that made it."""
