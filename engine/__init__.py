"""The engine: owns the model, the KV tensors and the step loop, and the client that other processes drive it by.

Importing this package, its ``client``, ``messages``, ``tokenizer``, ``detokenizer`` or ``prepare`` loads no torch.
"""
