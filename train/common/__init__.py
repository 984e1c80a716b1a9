"""What every task shares: configs, the loop, the step, checkpoints, metrics, data and reports."""
