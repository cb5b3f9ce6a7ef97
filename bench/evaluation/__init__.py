"""Evaluation: logits, frozen features, metrics, and checks against published accuracies."""
