"""Training entrypoints built on `attnjax`: one loop in `train.common`, one file per task."""
