"""Sweeps: plan many runs, search hyper-parameters with equal budgets, run trials in parallel."""
