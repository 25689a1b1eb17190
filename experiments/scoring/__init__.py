"""Other tools' logs of requests: read, and scored as the client's own."""
