"""Files of a run directory: run.json, metrics.jsonl and the locks, and the state read from them."""
