"""Examples: what a client does with a server, each a program of its own."""
