"""The rim towards clients: HTTP requests to journeys, answers and failures to HTTP."""
