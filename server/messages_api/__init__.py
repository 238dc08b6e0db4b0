"""Anthropic's Messages API, in terms of chats.

request    what clients send
blocks     its messages, as a chat's
tools      its tools, as a chat's
objects    what clients receive
"""
