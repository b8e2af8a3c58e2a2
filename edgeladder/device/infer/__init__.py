"""Evaluate, predict and deploy a tuned ladder; closed-form heads."""
