"""`python -m crosscoop` is the command `crosscoop`."""

from crosscoop.cli import main

main()
