"""Text made by a model, and text scored by one: batched, sharded, resumable. Used by preference tuning and by distillation."""
