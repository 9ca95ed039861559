"""What a step needs from the workflow: manifests, leases, launching of ranks, progress, tracking."""
