"""The teacher's probabilities on disk."""
