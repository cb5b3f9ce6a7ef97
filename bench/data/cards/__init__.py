"""Cards of suites and data sets, their label spaces, and where their data is located."""
