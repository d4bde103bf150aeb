"""The journeys: ordinary async code that awaits ports, asks `core` what to do, and does it."""
