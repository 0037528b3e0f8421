"""Export of networks to formats that other programs read."""
