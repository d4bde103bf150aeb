"""Holdfast: a caching pull-through proxy and mirror for Cargo registries.

The layers, from the outside in: `cli` turns arguments into a run, `serve` listens and drains,
`compose` builds the objects, `web` and `adapters` translate (HTTP from clients; HTTP to upstreams,
disk, metrics), `service` tells the journeys, `ports` says what the journeys need from the world,
`core` holds the rules.
"""
