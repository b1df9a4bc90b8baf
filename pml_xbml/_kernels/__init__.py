"""What is faster than autograd and loops; each file starts with its derivation. See ``functional`` first."""
