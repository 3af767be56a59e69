"""Does it fit, and how long will it take."""
