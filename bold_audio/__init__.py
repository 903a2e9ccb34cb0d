"""Which parts of the brain follow the sound, at what delay, and what it adds to the past."""

__version__ = "0.1.0"
