"""Cards of suites and datasets, their label spaces, and where their data is located."""
