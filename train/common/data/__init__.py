"""Where data sets come from: files, tables and the catalogue of tensorflow-datasets."""
