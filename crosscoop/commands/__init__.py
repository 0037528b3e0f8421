"""The commands of `crosscoop`, one file each."""
