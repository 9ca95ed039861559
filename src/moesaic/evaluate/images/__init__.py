"""Conversations with pictures: losses by modality, pictures drawn and described."""
