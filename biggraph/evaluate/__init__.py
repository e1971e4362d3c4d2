"""Evaluation of checkpoints: ranks of true entities among candidates, and their summaries."""
