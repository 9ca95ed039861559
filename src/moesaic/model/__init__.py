"""Dense loading, MoE families (standard transformers architectures), routing probes, students."""
