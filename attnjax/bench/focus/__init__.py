"""The study of runs that break: what warned of it, and what each remedy saved."""
