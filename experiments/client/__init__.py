"""The reader's side of a live server: an open-loop client, and a buffer that paces text."""
