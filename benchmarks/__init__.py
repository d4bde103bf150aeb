"""Holdfast beside what a user would pick instead: the same registry, cores, clients and terms."""
