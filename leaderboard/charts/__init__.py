"""One definition of every chart, for the page, for files and for print."""
