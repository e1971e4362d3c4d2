"""The training loop, from a run file down to one step."""
