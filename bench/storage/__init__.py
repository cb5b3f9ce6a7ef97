"""File storage: atomic writes, leases on shared folders, and safe readers for untrusted files."""
