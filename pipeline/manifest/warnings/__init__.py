"""What looks wrong about a manifest: labels, counts, groups."""
