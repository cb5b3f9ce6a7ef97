"""Cards of suites and data sets, the label spaces that they name, and where their data lie."""
