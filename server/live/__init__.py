"""The live map's source: one hub that asks the engine for as long as somebody looks, and tells all viewers.

`hub` asks and tells, within a bound on what that costs; `picture` is what has been told, for viewers who come later or
fall behind; `messages` is what it looks like on the wire.
"""
