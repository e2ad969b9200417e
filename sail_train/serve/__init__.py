"""Talking to a model over HTTP: an OpenAI-compatible endpoint and a small page, on the generator of training.

In the order of a request: `server` (the socket) -> `handler` (a connection: headers, routes) -> `service` (from a body
to the pieces of its answers), which goes through `request` and `messages` (JSON -> a checked question), `worker` (one
thread owns the model; rows of many requests are written together), `answer` (tokens -> thought and answer) and
`protocol` (their JSON).
"""
