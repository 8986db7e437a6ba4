"""The teacher's part: prompts, answers, and what of them is fit to learn from."""
