"""Files of a run directory: records, metrics.jsonl, the batch job's notes, and the state read from them."""
