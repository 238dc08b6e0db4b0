"""Policy: which sequences compute how many tokens in the next step, and who gives way. No tensors in here."""
