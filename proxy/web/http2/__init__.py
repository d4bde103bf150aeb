"""HTTP/2 towards clients: one connection, its streams, its limits."""
