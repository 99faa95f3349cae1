"""`python -m aqtopo`, and `deepspeed --module aqtopo`: the same command line."""

from aqtopo.cli.main import main

main()
