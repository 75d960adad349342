"""The demo: a task whose truth is known, and tiny models that are made on the spot to learn it."""
