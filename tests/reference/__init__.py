"""Slow, obvious answers to compare the real ones with; they share no code with clipguard."""
