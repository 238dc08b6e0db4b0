"""``octavo top``: what a server asks of its pool, in the terminal."""
