"""A trained model over HTTP: audio in, tags as JSON out, and a page for people. Runs without Ray.

`settings` -> `refusal`, `reply` -> `request`, `decoders` -> `answer` (beside the model); `body`,
`token`, `page` -> `door` (what clients reach) -> `server` (the door on a port).
"""
