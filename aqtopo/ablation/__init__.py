"""Does a mechanism pay? Alike trainings that differ in it alone, and what their scores say about it."""
