"""Students and distillation losses."""
