"""The layouts in which data sets lie on people's disks, one reader for each."""
