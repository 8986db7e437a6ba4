"""The student's part: losses, the loop, checkpoints, and models cut out of larger ones."""
