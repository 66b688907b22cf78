"""HTTP/2 (RFC 9113) as a server needs it: `frames`, `hpack`, `requests` and `patience` are pure; `connection`, and
`sending` below it, have the socket.  Nothing here knows gRPC, models or settings.
"""
