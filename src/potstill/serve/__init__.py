"""Doors: a model behind OpenAI's interface."""
