"""The real implementations of the ports: they translate and decide nothing about Cargo."""
