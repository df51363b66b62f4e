"""What an operator of the platform can see: metrics, and one log line per request.

Names live here and nowhere else. Nothing here decides anything.
"""
