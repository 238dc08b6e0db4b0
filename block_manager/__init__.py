"""Ids and counts of KV blocks: who owns which, what may be reused, what has to be copied. No tensors in here."""
