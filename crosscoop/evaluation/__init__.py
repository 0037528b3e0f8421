"""How labels come about and how they are measured."""
