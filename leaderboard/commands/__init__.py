"""The commands on finished runs: one module per command."""
