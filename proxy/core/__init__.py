"""The rules, as values in and values out: no IO, no clock, no logging, no asyncio."""
