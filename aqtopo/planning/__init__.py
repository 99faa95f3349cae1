"""Planning: samples, steps, memory and duration of a run before it starts."""
