"""Looks whether and how Octavo would work here: what `octavo doctor` tells. Loads no torch; a child process does."""
