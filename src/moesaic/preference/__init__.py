"""Preference tuning: sample answers, split them by a verifier, rate them with the model itself, train on the hardest pairs."""
