"""Process group, launch, device, heartbeats, watchdog and deadlines of the ranks of a run."""
