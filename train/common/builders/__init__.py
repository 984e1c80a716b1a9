"""tensorflow-datasets builders of our own, for data that every machine can make offline."""
