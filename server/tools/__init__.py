"""Tool calling as text: what clients declare, what a prompt says of it, and what a model's text says back.

The way of a request through the modules:

    definitions   what the client sent: tools, tool_choice            → `Tool`, `ToolChoice`
    formats       how this model writes a call                        → `ToolFormat`
    messages      the conversation, as the model's template wants it
    grammar       what the model may write, for constrained decoding
    parser        what the model wrote                                → `Content`, `CallStart`, `ArgumentsDelta`
"""
