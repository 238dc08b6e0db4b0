"""OpenAI's Responses API, in terms of chats.

request       what clients send
items         its input, as a chat's messages
tools         its tools, as a chat's
objects       what clients receive
events        what a stream tells them
store         what is kept for their next request
truncation    what is left out of a conversation that is too long
"""
