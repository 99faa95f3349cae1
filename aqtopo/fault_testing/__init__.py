"""Fault test: a run that is killed and resumed many times must end as an undisturbed one."""
